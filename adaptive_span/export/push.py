"""Upload an exported folder to the Hugging Face Hub."""

from pathlib import Path

from adaptive_span.errors import UserError, first_line

try:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
except ModuleNotFoundError as missing:
    raise UserError(f"there is no {missing.name} here; pip install 'adaptive-span[export]' brings it") from None


def check(name: str) -> None:
    """Refuse what cannot be uploaded, before anything is written.

    Raises:
        UserError: The name is none of a repository, or nobody is logged in.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name} is no name of a repository: {first_line(error)}; give USER/MODEL") from None
    if get_token() is None:
        raise UserError(
            f"--push {name} needs an account of the Hugging Face Hub; log in with hf auth login, or set HF_TOKEN"
        )


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder, and return the address of its repository, which is made if there is none.

    Raises:
        UserError: The Hub cannot be reached, or refuses it.
    """
    api = HfApi()
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Export of adaptive-span")
    except Exception as error:  # the library's own, and those of what it reaches the network with, which changed
        raise UserError(
            f"{folder} is written, but was not uploaded to {name} ({first_line(error)}); once the Hub can be reached, "
            f"hf upload {name} {folder} uploads it"
        ) from error
    return str(repository)
