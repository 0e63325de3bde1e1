//! A folder of adapters, one record a user and name, that a crash, a full disk or a second process cannot spoil.
//!
//! A record is replaced by writing a temporary file in the same folder, syncing it, renaming it over the old one and
//! syncing the folder: whatever happens, the file holds the old record or the new one, whole. The record before is kept
//! for [`AdapterStore::rollback`]. Writers hold a lock file meanwhile; readers need none. User names never become paths,
//! see [`AdapterStore::path_of`]. With a [`StoreKey`] every file is encrypted.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use inlay_format::record::{Record, RecordChecksum};
use inlay_format::state::{MAX_STATE_BYTES, State, StateError};

mod disk;
mod error;
mod name;
mod seal;

pub use error::{Action, StoreError};
pub use inlay_format::record::MAX_RECORD_BYTES;
pub use name::{AdapterId, MAX_NAME_BYTES, MAX_USER_BYTES, check_name, check_user};
pub use seal::{SealError, StoreKey};

use name::{ADAPTER, PREVIOUS, STATE};

const LOCK_FILE: &str = "store.lock";

/// A folder of adapters, by user and name.
///
/// Where a method takes an id, a user's name will do: `"anna"`, or `("anna", "work")` for one of several adapters.
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
    key: Option<StoreKey>,
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
        let store = Self { dir, key: None };
        // A leftover costs space and nothing else; whoever cannot sweep, because the store is read-only or in use, need not.
        if let Ok(lock) = disk::open_private(&store.dir.join(LOCK_FILE))
            && lock.try_lock().is_ok()
        {
            let _ = disk::sweep(&store.dir);
        }
        Ok(store)
    }

    /// This store with every file encrypted under `key` (XChaCha20-Poly1305), authenticated, and bound to its user and
    /// name. It then reads no file that is not; names of users stay readable, as file names.
    #[must_use]
    pub fn with_key(self, key: StoreKey) -> Self {
        Self { key: Some(key), ..self }
    }

    /// Checks that adapters can be saved here, before work is done whose result could not.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot be written.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        disk::check_writable(&self.dir)
    }

    /// The folder, as an absolute path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that holds an adapter, or would hold it.
    ///
    /// Its name is the user's, a dot and the adapter's name if it has one, with every byte but `a-z`, `0-9`, `_` and `-`
    /// written as `%` and two hexadecimal digits, so that no name leaves the folder, and none meets another on a file
    /// system that ignores case.
    ///
    /// # Errors
    /// [`StoreError::Name`] when user or name is empty, longer than [`MAX_USER_BYTES`] and [`MAX_NAME_BYTES`], or holds a
    /// control character.
    pub fn path_of(&self, id: impl Into<AdapterId>) -> Result<PathBuf, StoreError> {
        self.path(&id.into(), ADAPTER)
    }

    /// The users who have an adapter here, in alphabetical order.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder cannot be read.
    pub fn list(&self) -> Result<Vec<String>, StoreError> {
        let users: BTreeSet<String> = self.adapters()?.into_iter().map(|id| id.user).collect();
        Ok(users.into_iter().collect())
    }

    /// The adapters here, in alphabetical order.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder cannot be read.
    pub fn adapters(&self) -> Result<Vec<AdapterId>, StoreError> {
        self.files(ADAPTER)
    }

    /// The record of an adapter, checked as a whole. Whether it fits a base is the caller's to check.
    ///
    /// # Errors
    /// [`StoreError::NoAdapter`] when there is none, [`StoreError::Record`] when it is not whole, [`StoreError::Sealed`]
    /// when it is not encrypted under the store's key.
    pub fn load(&self, id: impl Into<AdapterId>) -> Result<Vec<u8>, StoreError> {
        let id = id.into();
        self.read_record(&id, ADAPTER)?.ok_or_else(|| self.no_adapter(id))
    }

    /// The record of an adapter, or `None` if there is none. Otherwise as [`load`](Self::load).
    ///
    /// # Errors
    /// [`StoreError::Record`] when it is not whole, [`StoreError::Sealed`] when it is not encrypted under the store's key,
    /// [`StoreError::Io`] when it cannot be read.
    pub fn load_if_any(&self, id: impl Into<AdapterId>) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_record(&id.into(), ADAPTER)
    }

    /// The record that [`rollback`](Self::rollback) would bring back, or `None` if there is none.
    ///
    /// # Errors
    /// As [`load_if_any`](Self::load_if_any).
    pub fn load_previous(&self, id: impl Into<AdapterId>) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_record(&id.into(), PREVIOUS)
    }

    /// Saves `record` as an adapter, in place of the one that may be there, which is kept for a rollback.
    ///
    /// When it returns, the record is on the disk. When it fails, the old record is as it was.
    ///
    /// # Errors
    /// [`StoreError::NotSaved`] when `record` is not a whole record, [`StoreError::Sealed`] when the old one is not encrypted
    /// under the store's key, [`StoreError::Io`] when it cannot be written.
    pub fn save(&self, id: impl Into<AdapterId>, record: &[u8]) -> Result<(), StoreError> {
        self.write_record(&id.into(), record, |_| Ok(()))
    }

    /// Saves as [`save`](Self::save), but only over the record with checksum `previous` (`None`: over none), so that two
    /// processes that train one adapter do not lose each other's work unseen.
    ///
    /// # Errors
    /// As [`save`](Self::save), and [`StoreError::Changed`] when another record is there by now.
    pub fn save_over(
        &self,
        id: impl Into<AdapterId>,
        record: &[u8],
        previous: Option<RecordChecksum>,
    ) -> Result<(), StoreError> {
        let id = id.into();
        self.write_record(&id, record, |current| {
            let found = current?.as_deref().map(checksum);
            if found == previous {
                return Ok(());
            }
            let path = self.path(&id, ADAPTER)?;
            Err(StoreError::Changed { id: id.clone(), path, expected: previous, found })
        })
    }

    /// Brings back the record before the last save; what was there takes its place, so that a second rollback undoes the
    /// first. A damaged record is not kept.
    ///
    /// # Errors
    /// [`StoreError::NoPrevious`] when nothing was kept, else as [`load`](Self::load) and [`save`](Self::save).
    pub fn rollback(&self, id: impl Into<AdapterId>) -> Result<(), StoreError> {
        let id = id.into();
        let _lock = self.lock()?;
        let Some(previous) = self.read_record(&id, PREVIOUS)? else {
            return Err(StoreError::NoPrevious { id, dir: self.dir.clone() });
        };
        let current = whole_or_none(self.read_record(&id, ADAPTER))?;
        self.replace(&id, &previous, current.as_deref())
    }

    /// Writes an adapter's record to `file`, not encrypted whatever the store is, for [`import`](Self::import) elsewhere.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`StoreError::Exists`] when `file` is there.
    pub fn export(&self, id: impl Into<AdapterId>, file: impl AsRef<Path>) -> Result<(), StoreError> {
        let (record, file) = (self.load(id)?, file.as_ref());
        if fs::exists(file).map_err(Action::Read.failed(file))? {
            return Err(StoreError::Exists { path: file.into() });
        }
        disk::write_synced(file, &record)
    }

    /// Saves the record in `file` as an adapter, as [`save`](Self::save) does.
    ///
    /// # Errors
    /// As [`save`](Self::save), and [`StoreError::Io`] when `file` cannot be read.
    pub fn import(&self, id: impl Into<AdapterId>, file: impl AsRef<Path>) -> Result<(), StoreError> {
        let file = file.as_ref();
        let missing = || Action::Read.failed(file)(io::ErrorKind::NotFound.into());
        let record = disk::read_if_any(file, MAX_RECORD_BYTES)?.ok_or_else(missing)?;
        self.save(id, &record)
    }

    /// Saves the optimizer's `state` beside an adapter, for resuming.
    ///
    /// # Errors
    /// [`StoreError::NoAdapter`] when there is no record, [`StoreError::State`] when the state is not whole or continues
    /// another record, [`StoreError::Io`] when it cannot be written.
    pub fn save_state(&self, id: impl Into<AdapterId>, state: &[u8]) -> Result<(), StoreError> {
        let id = id.into();
        let _lock = self.lock()?;
        self.check_state(&id, state)?;
        let file = id.file_name(STATE)?;
        disk::replace(&self.dir, &[(&file, &self.sealed(&id, &file, state)?)])
    }

    /// The optimizer's state that continues an adapter, or `None` if there is none. A state that continues another record
    /// is none: it outlived its record in a crash, and [`sweep`](Self::sweep) removes it.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`StoreError::State`] when the state is not whole.
    pub fn load_state(&self, id: impl Into<AdapterId>) -> Result<Option<Vec<u8>>, StoreError> {
        let id = id.into();
        let Some(state) = self.read(&id, STATE, MAX_STATE_BYTES)? else { return Ok(None) };
        match self.check_state(&id, &state) {
            Ok(()) => Ok(Some(state)),
            Err(StoreError::State { source: StateError::OtherRecord { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes an adapter, the record before it and its optimizer state.
    ///
    /// The files are gone; on flash storage their bytes may not be. With [`with_key`](Self::with_key), dropping the key
    /// makes sure.
    ///
    /// # Errors
    /// [`StoreError::NoAdapter`] when there is none, [`StoreError::Io`] when it cannot be deleted.
    pub fn delete(&self, id: impl Into<AdapterId>) -> Result<(), StoreError> {
        let id = id.into();
        let paths = [PREVIOUS, STATE, ADAPTER].map(|extension| self.path(&id, extension));
        let _lock = self.lock()?;
        let mut found = false;
        // The record last: without it nothing says that the others are there.
        for path in paths {
            found |= disk::remove_if_any(&path?)?;
        }
        if found { disk::sync_dir(&self.dir) } else { Err(self.no_adapter(id)) }
    }

    /// Removes what no adapter needs: temporary files of killed writers, and states that continue a record which is gone.
    /// Gives how many. A state that cannot be read, for want of a key or because it is damaged, stays.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder cannot be read or a file cannot be deleted.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        let _lock = self.lock()?;
        let adapters: BTreeSet<AdapterId> = self.adapters()?.into_iter().collect();
        let mut removed = disk::sweep(&self.dir)?;
        for id in self.files(STATE)? {
            if !adapters.contains(&id) || matches!(self.load_state(&id), Ok(None)) {
                removed += usize::from(disk::remove_if_any(&self.path(&id, STATE)?)?);
            }
        }
        Ok(removed)
    }

    fn write_record(
        &self,
        id: &AdapterId,
        record: &[u8],
        may_replace: impl FnOnce(Result<Option<Vec<u8>>, StoreError>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        id.file_name(ADAPTER)?;
        Record::decode(record).map_err(|source| StoreError::NotSaved { id: id.clone(), source })?;
        let _lock = self.lock()?;
        may_replace(self.read_record(id, ADAPTER))?;
        let current = whole_or_none(self.read_record(id, ADAPTER))?;
        self.replace(id, record, current.as_deref())
    }

    /// Puts `record` in the place of `current`, and that in the place of the one before. The caller holds the lock.
    fn replace(&self, id: &AdapterId, record: &[u8], current: Option<&[u8]>) -> Result<(), StoreError> {
        let [adapter, previous] = [id.file_name(ADAPTER)?, id.file_name(PREVIOUS)?];
        let new = self.sealed(id, &adapter, record)?;
        match current.filter(|current| *current != record) {
            Some(current) => {
                let kept = self.sealed(id, &previous, current)?;
                disk::replace(&self.dir, &[(&previous, &kept), (&adapter, &new)])?;
            }
            None => disk::replace(&self.dir, &[(&adapter, &new)])?,
        }
        if current != Some(record) {
            // It continued the record that is gone.
            disk::remove_if_any(&self.path(id, STATE)?)?;
        }
        Ok(())
    }

    fn check_state(&self, id: &AdapterId, state: &[u8]) -> Result<(), StoreError> {
        let record = checksum(&self.load(id)?);
        let path = self.path(id, STATE)?;
        let refused = |source| StoreError::State { id: id.clone(), path: path.clone(), source };
        let state = State::decode(state).map_err(refused)?;
        state.expect(record, state.header().optimizer).map_err(refused)
    }

    fn read_record(&self, id: &AdapterId, extension: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(bytes) = self.read(id, extension, MAX_RECORD_BYTES)? else { return Ok(None) };
        match Record::decode(&bytes) {
            Ok(_) => Ok(Some(bytes)),
            Err(source) => Err(StoreError::Record { id: id.clone(), path: self.path(id, extension)?, source }),
        }
    }

    /// The contents of a file, decrypted if the store has a key.
    fn read(&self, id: &AdapterId, extension: &str, limit: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(id, extension)?;
        let Some(bytes) = disk::read_if_any(&path, limit + seal::SEAL_BYTES)? else { return Ok(None) };
        let opened = match &self.key {
            Some(key) => key.open(&id.file_name(extension)?, &bytes),
            None if seal::is_sealed(&bytes) => Err(SealError::KeyNeeded),
            None => Ok(bytes),
        };
        opened.map(Some).map_err(|source| StoreError::Sealed { id: id.clone(), path, source })
    }

    fn sealed(&self, id: &AdapterId, file_name: &str, plain: &[u8]) -> Result<Vec<u8>, StoreError> {
        let Some(key) = &self.key else { return Ok(plain.into()) };
        let path = || self.dir.join(file_name);
        key.seal(file_name, plain).map_err(|source| StoreError::Sealed { id: id.clone(), path: path(), source })
    }

    fn path(&self, id: &AdapterId, extension: &str) -> Result<PathBuf, StoreError> {
        Ok(self.dir.join(id.file_name(extension)?))
    }

    /// Whose files with `extension` there are.
    fn files(&self, extension: &str) -> Result<Vec<AdapterId>, StoreError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Action::Read.failed(&self.dir))? {
            let entry = entry.map_err(Action::Read.failed(&self.dir))?;
            found.extend(entry.file_name().to_str().and_then(|file| AdapterId::of_file(file, extension)));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Waits until no other writer holds the store. Dropping the file lets the next one in.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.dir.join(LOCK_FILE);
        let file = disk::open_private(&path).map_err(Action::Write.failed(&path))?;
        file.lock().map_err(Action::Lock.failed(&path))?;
        Ok(file)
    }

    fn no_adapter(&self, id: AdapterId) -> StoreError {
        let known = self.adapters().unwrap_or_default();
        StoreError::NoAdapter { id, dir: self.dir.clone(), known }
    }
}

/// What is worth keeping of what was read: a damaged record is not, and may be replaced. A key that does not fit is
/// another matter: what is there may be whole.
fn whole_or_none(read: Result<Option<Vec<u8>>, StoreError>) -> Result<Option<Vec<u8>>, StoreError> {
    match read {
        Err(StoreError::Record { .. } | StoreError::Sealed { source: SealError::Altered, .. }) => Ok(None),
        other => other,
    }
}

/// The checksum of a record that was checked.
fn checksum(record: &[u8]) -> RecordChecksum {
    Record::decode(record).expect("records are checked when they are read").checksum()
}

#[cfg(test)]
mod tests;
