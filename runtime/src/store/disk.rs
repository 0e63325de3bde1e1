//! Files that are whole or not there, whatever happens while they are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::name::TEMPORARY;
use super::{Action, StoreError};

/// Replaces the file at `path` by one that holds `bytes`, so that a crash leaves the old one or the new one. The caller
/// holds the store's lock.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let replaced = write_synced(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path).map_err(Action::Rename.failed(path)));
    if replaced.is_err() {
        // It holds nothing of use; if it cannot be removed either, opening the store sweeps it.
        let _ = fs::remove_file(&temporary);
    }
    replaced?;
    sync_dir(path.parent().expect("a store's files lie in its folder"))
}

/// Removes a file that may not be there.
pub(super) fn remove_if_any(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Action::Delete.failed(path)(error)),
        _ => Ok(()),
    }
}

/// Opens a file for writing, created if it is not there, readable by this user alone.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().write(true).create(true).truncate(false)).open(path)
}

/// Makes the names in a folder survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    // Elsewhere folders cannot be opened, and renaming is journalled.
    if cfg!(unix) { File::open(dir).and_then(|dir| dir.sync_all()).map_err(Action::Sync.failed(dir)) } else { Ok(()) }
}

/// Creates `dir` and what is missing above it, readable by this user alone, and syncs what names them.
pub(super) fn create_dir_synced(dir: &Path) -> Result<(), StoreError> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(Action::Create.failed(dir))?;
    missing.into_iter().filter_map(Path::parent).try_for_each(sync_dir)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    // Of a writer that was killed: whoever holds the lock is the only one alive.
    remove_if_any(path)?;
    let mut file =
        private(OpenOptions::new().write(true).create_new(true)).open(path).map_err(Action::Write.failed(path))?;
    file.write_all(bytes).map_err(Action::Write.failed(path))?;
    file.sync_all().map_err(Action::Sync.failed(path))
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}
