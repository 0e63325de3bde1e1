//! A folder of adapters, one record a user, that a crash, a full disk or a second process cannot spoil.
//!
//! A record is replaced by writing a temporary file in the same folder, syncing it, renaming it over the old one and
//! syncing the folder: whatever happens, the file holds the old record or the new one, whole. Writers hold a lock file
//! meanwhile; readers need none. User names never become paths, see [`AdapterStore::path_of`].

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use inlay_format::record::{Record, RecordChecksum};
use inlay_format::state::{MAX_STATE_BYTES, State};

mod disk;
mod error;
mod name;

pub use error::{Action, StoreError};
pub use inlay_format::record::MAX_RECORD_BYTES;
pub use name::{MAX_USER_BYTES, check_user};

use name::{ADAPTER, STATE, TEMPORARY};

const LOCK_FILE: &str = "store.lock";

/// A folder of adapters, by user.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use inlay_runtime::{Adapter, AdapterOptions, AdapterStore, Dataset, Dtype, Session, TrainOptions, Trainer};
///
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path().join("adapters");
/// # let mut session = Session::open("tests/data/tiny")?;
/// # let data = Dataset::read(session.base(), "tests/data/tiny.npz")?;
/// # let new = Adapter::new(session.base(), &AdapterOptions::lora(2))?;
/// # let trained = Trainer::new(&mut session, new, &data, TrainOptions::new().steps(2))?.run(|_| ControlFlow::Continue(()))?;
/// let store = AdapterStore::open(&folder)?;
/// store.save("Ana López", &trained.adapter.to_record(Dtype::Int8)?)?;
/// assert_eq!(store.list()?, ["Ana López"]);
/// let adapter = Adapter::from_record(session.base(), &store.load("Ana López")?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct AdapterStore {
    dir: PathBuf,
}

impl AdapterStore {
    /// Opens the store in `dir`, which is created if it is not there, readable by this user alone.
    ///
    /// Sweeps the temporary files of writers that were killed, unless another process is writing.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder can be neither opened nor created.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let dir = std::path::absolute(dir.as_ref()).map_err(Action::Open.failed(dir.as_ref()))?;
        disk::create_dir_synced(&dir)?;
        Self::open_existing(dir)
    }

    /// Opens the store in `dir` if it is there.
    ///
    /// # Errors
    /// [`StoreError::NoStore`] when it is not, [`StoreError::Io`] when it cannot be read.
    pub fn open_existing(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let dir = std::path::absolute(dir.as_ref()).map_err(Action::Open.failed(dir.as_ref()))?;
        match fs::metadata(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::NoStore { dir }),
            Err(error) => return Err(Action::Open.failed(&dir)(error)),
            Ok(metadata) if !metadata.is_dir() => {
                return Err(Action::Open.failed(&dir)(io::ErrorKind::NotADirectory.into()));
            }
            Ok(_) => {}
        }
        let store = Self { dir };
        store.sweep();
        Ok(store)
    }

    /// Checks that adapters can be saved here, before work is done whose result could not.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot be written.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        // Named as what a killed writer leaves, so that it is swept if this process is killed.
        let probe = self.dir.join(name::file_name("probe", ADAPTER)? + TEMPORARY);
        disk::open_private(&probe).map_err(Action::Write.failed(&probe))?;
        disk::remove_if_any(&probe)
    }

    /// The folder, as an absolute path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that holds the adapter of `user`, or would hold it.
    ///
    /// Its name is the user's, with every byte but `a-z`, `0-9`, `_` and `-` written as `%` and two hexadecimal digits, so
    /// that no name leaves the folder, and none meets another on a file system that ignores case.
    ///
    /// # Errors
    /// [`StoreError::User`] when `user` is empty, longer than [`MAX_USER_BYTES`] or holds a control character.
    pub fn path_of(&self, user: &str) -> Result<PathBuf, StoreError> {
        Ok(self.dir.join(name::file_name(user, ADAPTER)?))
    }

    /// The users who have an adapter here, in alphabetical order.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder cannot be read.
    pub fn list(&self) -> Result<Vec<String>, StoreError> {
        let mut users = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Action::Read.failed(&self.dir))? {
            let entry = entry.map_err(Action::Read.failed(&self.dir))?;
            users.extend(entry.file_name().to_str().and_then(|file| name::user_of(file, ADAPTER)));
        }
        users.sort_unstable();
        Ok(users)
    }

    /// The record of `user`, checked as a whole. Whether it fits a base is the caller's to check.
    ///
    /// # Errors
    /// [`StoreError::NoAdapter`] when there is none, [`StoreError::Record`] when it is not whole.
    pub fn load(&self, user: &str) -> Result<Vec<u8>, StoreError> {
        self.load_if_any(user)?.ok_or_else(|| self.no_adapter(user))
    }

    /// The record of `user`, or `None` if there is none. Otherwise as [`load`](Self::load).
    ///
    /// # Errors
    /// [`StoreError::Record`] when it is not whole, [`StoreError::Io`] when it cannot be read.
    pub fn load_if_any(&self, user: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path_of(user)?;
        let Some(bytes) = read_if_any(&path, MAX_RECORD_BYTES)? else { return Ok(None) };
        match Record::decode(&bytes) {
            Ok(_) => Ok(Some(bytes)),
            Err(source) => Err(StoreError::Record { user: user.into(), path, source }),
        }
    }

    /// Saves `record` as the adapter of `user`, in place of the one that may be there.
    ///
    /// When it returns, the record is on the disk. When it fails, the old record is as it was.
    ///
    /// # Errors
    /// [`StoreError::NotSaved`] when `record` is not a whole record, [`StoreError::Io`] when it cannot be written.
    pub fn save(&self, user: &str, record: &[u8]) -> Result<(), StoreError> {
        self.write_record(user, record, |_| Ok(()))
    }

    /// Saves as [`save`](Self::save), but only over the record with checksum `previous` (`None`: over none), so that two
    /// processes that train one user's adapter do not lose each other's work unseen.
    ///
    /// # Errors
    /// As [`save`](Self::save), and [`StoreError::Changed`] when another record is there by now.
    pub fn save_over(&self, user: &str, record: &[u8], previous: Option<RecordChecksum>) -> Result<(), StoreError> {
        self.write_record(user, record, |path| {
            let current = self.load_if_any(user)?;
            let found = current.as_deref().and_then(|bytes| Record::decode(bytes).ok()).map(|r| r.checksum());
            if found == previous {
                Ok(())
            } else {
                Err(StoreError::Changed { user: user.into(), path: path.into(), expected: previous, found })
            }
        })
    }

    /// Saves the optimizer's `state` beside the record of `user`, for resuming.
    ///
    /// # Errors
    /// [`StoreError::NoAdapter`] when there is no record, [`StoreError::State`] when the state is not whole or continues
    /// another record, [`StoreError::Io`] when it cannot be written.
    pub fn save_state(&self, user: &str, state: &[u8]) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let path = self.dir.join(name::file_name(user, STATE)?);
        self.check_state(user, &path, state)?;
        disk::replace(&path, state)
    }

    /// The optimizer's state that continues the record of `user`, or `None` if there is none.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`StoreError::State`] when the state is not whole or continues another record.
    pub fn load_state(&self, user: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.dir.join(name::file_name(user, STATE)?);
        let Some(state) = read_if_any(&path, MAX_STATE_BYTES)? else { return Ok(None) };
        self.check_state(user, &path, &state)?;
        Ok(Some(state))
    }

    /// Deletes the adapter of `user` and its optimizer state.
    ///
    /// # Errors
    /// [`StoreError::NoAdapter`] when there is none, [`StoreError::Io`] when it cannot be deleted.
    pub fn delete(&self, user: &str) -> Result<(), StoreError> {
        let path = self.path_of(user)?;
        if !fs::exists(&path).map_err(Action::Read.failed(&path))? {
            return Err(self.no_adapter(user));
        }
        let _lock = self.lock()?;
        // The state first: without its record it would be of no use.
        disk::remove_if_any(&self.dir.join(name::file_name(user, STATE)?))?;
        disk::remove_if_any(&path)?;
        disk::sync_dir(&self.dir)
    }

    fn write_record(
        &self,
        user: &str,
        record: &[u8],
        may_replace: impl FnOnce(&Path) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let path = self.path_of(user)?;
        Record::decode(record).map_err(|source| StoreError::NotSaved { user: user.into(), source })?;
        let _lock = self.lock()?;
        may_replace(&path)?;
        disk::replace(&path, record)?;
        // It continued the record that is gone.
        disk::remove_if_any(&self.dir.join(name::file_name(user, STATE)?))
    }

    fn check_state(&self, user: &str, path: &Path, state: &[u8]) -> Result<(), StoreError> {
        let record = self.load(user)?;
        let record = Record::decode(&record).expect("load returns whole records").checksum();
        let refused = |source| StoreError::State { user: user.into(), path: path.into(), source };
        let state = State::decode(state).map_err(refused)?;
        state.expect(record, state.header().optimizer).map_err(refused)
    }

    /// Waits until no other writer holds the store. Dropping the file lets the next one in.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.dir.join(LOCK_FILE);
        let file = disk::open_private(&path).map_err(Action::Write.failed(&path))?;
        file.lock().map_err(Action::Lock.failed(&path))?;
        Ok(file)
    }

    /// Removes what killed writers left. Whoever cannot, because the store is read-only or in use, need not.
    fn sweep(&self) {
        let Ok(lock) = disk::open_private(&self.dir.join(LOCK_FILE)) else { return };
        if lock.try_lock().is_err() {
            return;
        }
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(name::is_temporary) {
                // A leftover costs space and nothing else; the next opening tries again.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn no_adapter(&self, user: &str) -> StoreError {
        let known = self.list().unwrap_or_default();
        StoreError::NoAdapter { user: user.into(), dir: self.dir.clone(), known }
    }
}

/// The bytes of a file of at most `limit` bytes, or one more if it is longer, which no decoder accepts.
fn read_if_any(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Action::Read.failed(path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(Action::Read.failed(path))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
