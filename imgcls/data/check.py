"""What is wrong with a data set, found before a run is made."""

import os
from concurrent.futures import ThreadPoolExecutor

from imgcls.data.images import DecodedImages, Progress, map_bounded
from imgcls.errors import UserError
from imgcls.tables import Manifest, Skipped


def drop_unreadable(manifest: Manifest, *, progress: Progress | None = None) -> Manifest:
    """The manifest without the images that cannot be decoded; they are among its `skipped`, with reasons.

    Raises:
        UserError: a class is left without images.
    """
    if manifest.images is not None:
        return manifest
    files = DecodedImages(manifest, channels=3, short_side=32)

    def reason(index: int) -> str | None:
        try:
            files[index]
        except UserError as error:
            return str(error)
        return None

    bad: dict[int, Skipped] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, found in enumerate(map_bounded(pool, reason, len(files))):
            if found is not None:
                bad[index] = Skipped(manifest.ids[index], found)
            if progress is not None:
                progress(index + 1, len(files))
    if not bad:
        return manifest
    kept = manifest.without(list(bad), skipped=list(bad.values()))
    empty = sorted(set(range(len(manifest.classes))) - set(kept.labels.tolist()))
    if empty:
        raise UserError(
            f"every image of the class {manifest.classes[empty[0]]!r} is unreadable ({len(empty)} such classes), "
            f"the first because: {next(iter(bad.values())).reason} Mend the images or remove the class."
        )
    return kept
