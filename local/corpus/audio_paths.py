"""Where the audio of a path is that a table or a manifest names."""

from __future__ import annotations

from pathlib import Path, PurePath

from local.common.text_files import is_file

AUDIO_ENDINGS = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".oga", ".sph", ".aiff", ".aif", ".aifc", ".au", ".w64", ".caf"),
    *(".mp4", ".aac", ".wma", ".webm", ".amr", ".mka"),  # these need ffmpeg
)
FOLDERS = ("clips", "wavs", "wav", "audio")  # beside a table: Common Voice's, LJSpeech's and usual names


def has_audio_ending(name: str) -> bool:
    """Return whether the name ends as audio files do."""
    return PurePath(name).suffix.lower() in AUDIO_ENDINGS


def locate(written: str, folder: Path) -> Path:
    """Return the file of a path in a manifest in `folder`.

    A relative path starts at the working directory, `folder` or a folder above it: Kaldi's paths start at its run.sh.
    """
    path = Path(written)
    if path.is_absolute():
        return path
    roots = (Path.cwd(), folder.absolute(), *folder.absolute().parents)
    return next((root / path for root in roots if is_file(root / path)), folder.absolute() / path)


class AudioFinder:
    """Finds the audio files of a table.

    A path starts at the table's folder or at a folder of audio beside it (`clips/`, `wavs/`, or named as the part), and its
    ending may be missing (`LJ001-0001`). At last it is looked for as in Kaldi's directories, see `locate`.
    """

    def __init__(self, folder: Path, part: str) -> None:
        """Look in `folder`, the table's, and in the folders of audio that are in it."""
        self.folder = folder
        beside = (folder / name for name in (*FOLDERS, part))
        self._folders = [folder, *(path for path in beside if path.is_dir())]

    def find(self, written: str) -> Path | None:
        """Return the file, or None if there is none."""
        if not written.strip(" ./"):
            return None
        endings = ("",) if has_audio_ending(written) else ("", *AUDIO_ENDINGS)
        for folder in self._folders:
            for ending in endings:
                if is_file(path := folder / (written + ending)):
                    return path
        found = locate(written, self.folder) if endings == ("",) else self.folder  # else any word might be a file somewhere
        return found if is_file(found) else None

    def path(self, written: str) -> Path:
        """Return the file, or the path in the table's folder if there is none."""
        return self.find(written) or self.folder / written
