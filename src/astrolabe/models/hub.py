"""Where the files of a model are: on this machine, in the hub's cache, or to be downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from astrolabe.models.released import RELEASED, WAN_REPOSITORY
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.files import exists, place, refusal
from astrolabe.runtime.progress import progress
from astrolabe.runtime.tensorfile import INDEX, index_in

HUB = re.compile(r"(?P<mark>hf:(//)?)?(?P<id>[A-Za-z0-9_][\w.-]*/[\w.-]+)")


def find_file(source: str, repository: str, file: str, fetch: bool = True, shards: bool = False) -> Path:
    """A file of a model: ``source`` is a local file, a local folder, a hub id, or empty for ``repository`` on the hub.

    A folder may have the file where the repository has it, or at its top; with ``shards`` it may have an index of
    shards instead. What is on the hub is downloaded once; with HF_HUB_OFFLINE=1, or without ``fetch``, the cache alone
    is asked. A path never leaves the machine: the hub hears of ``owner/name`` when the owner is the repository's or a
    released model's, of others when it is written hf:owner/name, and of nothing that lies here or is no id.
    """
    if not source:
        return download(repository, file, fetch)
    marked = HUB.fullmatch(source)
    if marked and marked["mark"]:
        return download(marked["id"], file, fetch)
    path = place(source)
    if exists(path):
        return path if path.is_file() else _inside(path, file, shards)
    owners = {known.split("/")[0] for known in (repository, WAN_REPOSITORY, *(m.repository for m in RELEASED.values()))}
    if marked and marked["id"].split("/")[0] in owners:
        return download(source, file, fetch)
    hint = f"; if it is a repository on the hub, write hf:{source}" if marked else ""
    raise UserError(f"{source}: no such file or folder{_seen_from(path)}, and not a hub id (hf:owner/name){hint}")


def beside(source: str) -> str:
    """Where files are looked for that belong to one that was named: its folder; else what was named itself."""
    path = place(source)
    return str(path.parent) if source and exists(path) and path.is_file() else source


def _inside(folder: Path, file: str, shards: bool) -> Path:
    for candidate in (folder / file, folder / Path(file).name):
        if exists(candidate) and candidate.is_file():
            return candidate
    if shards and any(folder.glob(f"*{INDEX}")):
        return index_in(folder)
    raise UserError(f"{folder}: has neither {file} nor {Path(file).name}; download it there, or name the file")


def _seen_from(path: Path) -> str:
    """Where a relative path was looked for."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"


def download(repository: str, file: str, fetch: bool = True) -> Path:
    """A file of a hub repository, from the cache when it is there. UserError when it cannot be had, and why."""
    from huggingface_hub import constants, errors, hf_hub_download

    offline = constants.HF_HUB_OFFLINE
    if constants.HF_HUB_CACHE.startswith("~"):
        raise UserError(
            f"{repository}/{file}: this user has no home, where the hub's cache would be; name a folder for it: HF_HOME"
        )
    try:
        with progress(f"downloading {repository}/{file}", own_bar=True):
            return Path(hf_hub_download(repository, file, local_files_only=offline or not fetch))
    except errors.GatedRepoError:
        page = f"https://huggingface.co/{repository}"
        why = f"cannot be downloaded before its licence is accepted at {page}, and `hf auth login` was run"
    except errors.RepositoryNotFoundError:
        why = "cannot be downloaded: there is no such repository, or it is private and asks for `hf auth login`"
    except errors.RemoteEntryNotFoundError:
        why = "cannot be downloaded: the repository has no such file"
    except PermissionError as error:
        raise refusal(error.filename or constants.HF_HUB_CACHE, error) from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        if offline:
            why = "cannot be downloaded: HF_HUB_OFFLINE=1 forbids it, and the hub's cache here does not have it"
        elif not fetch:
            why = "not on this machine"
        else:
            why = f"cannot be downloaded ({str(error.__cause__ or error).strip().splitlines()[0]})"
    raise UserError(
        f"{repository}/{file}: {why}; name its folder with --model.weights (--model.wan for VAE and text encoder)"
    )
