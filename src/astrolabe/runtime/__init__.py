"""Whatever touches disk, ranks or seeds."""
