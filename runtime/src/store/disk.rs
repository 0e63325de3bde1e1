//! Files that are whole or not there, whatever happens while they are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use super::{Action, StoreError};

/// What the files to come are called while they are written. Whoever holds the store's lock is the only writer.
const TEMPORARIES: [&str; 2] = ["0.tmp", "1.tmp"];

/// Replaces files in `dir`, at most as many as there are temporary names, so that a crash leaves for each the old one or
/// the new one, and changes them in their order. The caller holds the store's lock.
pub(super) fn replace(dir: &Path, files: &[(&str, &[u8])]) -> Result<(), StoreError> {
    let replaced = write_all(dir, files);
    if replaced.is_err() {
        // They hold nothing of use; if they cannot be removed either, opening the store sweeps them.
        let _ = sweep(dir);
    }
    replaced?;
    sync_dir(dir)
}

fn write_all(dir: &Path, files: &[(&str, &[u8])]) -> Result<(), StoreError> {
    assert!(files.len() <= TEMPORARIES.len(), "callers write a record and what was there before");
    for ((_, bytes), temporary) in files.iter().zip(TEMPORARIES) {
        write_synced(&dir.join(temporary), bytes)?;
    }
    for ((name, _), temporary) in files.iter().zip(TEMPORARIES) {
        let path = dir.join(name);
        fs::rename(dir.join(temporary), &path).map_err(Action::Rename.failed(&path))?;
    }
    Ok(())
}

/// Checks that files can be made in `dir`. The caller holds the store's lock.
pub(super) fn check_writable(dir: &Path) -> Result<(), StoreError> {
    // By a name that is swept if this process is killed.
    let probe = dir.join(TEMPORARIES[0]);
    open_private(&probe).map_err(Action::Write.failed(&probe))?;
    sweep(dir).map(drop)
}

/// Removes what killed writers left; gives how many files. The caller holds the store's lock.
pub(super) fn sweep(dir: &Path) -> Result<usize, StoreError> {
    let removed = TEMPORARIES.map(|name| remove_if_any(&dir.join(name)));
    removed.into_iter().try_fold(0, |count, removed| Ok(count + usize::from(removed?)))
}

/// Removes a file that may not be there; whether it was.
pub(super) fn remove_if_any(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Action::Delete.failed(path)(error)),
    }
}

/// The bytes of a file of at most `limit` bytes, or one more if it is longer, which no decoder accepts.
pub(super) fn read_if_any(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Action::Read.failed(path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(Action::Read.failed(path))?;
    Ok(Some(bytes))
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

/// Writes a file that is not there yet, or is a leftover, and waits until it is on the disk.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
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
