"""What the documentation claims, measured: see docs/evidence_plan.md."""
