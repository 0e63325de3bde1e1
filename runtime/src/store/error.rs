use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use inlay_format::record::{RecordChecksum, RecordError};
use inlay_format::state::StateError;

use super::{AdapterId, SealError};

/// Why a store cannot do what it was asked. The files that were there are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A user or adapter name that the store does not take.
    #[error("{name:?} cannot be the name of {} {what}: {reason}", article(what))]
    Name {
        /// Of what: a user or an adapter.
        what: &'static str,
        /// The name.
        name: String,
        /// The rule it breaks.
        reason: String,
    },
    /// The folder is not there.
    #[error("there is no adapter store at {}; train an adapter first, or name another folder", .dir.display())]
    NoStore {
        /// The folder.
        dir: PathBuf,
    },
    /// There is no such adapter.
    #[error("no {id} in {}; it holds {}", .dir.display(), Listed(.known))]
    NoAdapter {
        /// The adapter.
        id: AdapterId,
        /// The store's folder.
        dir: PathBuf,
        /// The adapters that there are.
        known: Vec<AdapterId>,
    },
    /// There is no record to roll back to.
    #[error("no earlier {id} in {}; one is kept from the second save on", .dir.display())]
    NoPrevious {
        /// The adapter.
        id: AdapterId,
        /// The store's folder.
        dir: PathBuf,
    },
    /// The file to export to is there.
    #[error("{} exists; name another file, or delete it", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be encrypted or decrypted.
    #[error("the {id} at {} cannot be used", .path.display())]
    Sealed {
        /// The adapter.
        id: AdapterId,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: SealError,
    },
    /// The record cannot be used.
    #[error("the {id} at {} cannot be used", .path.display())]
    Record {
        /// The adapter.
        id: AdapterId,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: RecordError,
    },
    /// The bytes to save are not a whole record.
    #[error("the {id} was not saved")]
    NotSaved {
        /// The adapter.
        id: AdapterId,
        /// What is wrong with it.
        source: RecordError,
    },
    /// The optimizer's state cannot be used.
    #[error("the training state of the {id} at {} cannot be used", .path.display())]
    State {
        /// The adapter.
        id: AdapterId,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: StateError,
    },
    /// Another process saved or deleted the adapter meanwhile.
    #[error(
        "the {id} at {} changed meanwhile: expected {}, found {}; load it and train again",
        .path.display(), Checksum(.expected), Checksum(.found)
    )]
    Changed {
        /// The adapter.
        id: AdapterId,
        /// Its file.
        path: PathBuf,
        /// Checksum of the record that was to be replaced.
        expected: Option<RecordChecksum>,
        /// Checksum of the record that is there.
        found: Option<RecordChecksum>,
    },
    /// The operating system refused.
    #[error("cannot {action} {}{}", .path.display(), way_out(.source))]
    Io {
        /// What was tried.
        action: Action,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a store tried when the operating system refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Open the store's folder.
    Open,
    /// Create the store's folder.
    Create,
    /// Lock the store.
    Lock,
    /// Read a file or folder.
    Read,
    /// Write a file.
    Write,
    /// Sync a file or folder to the disk.
    Sync,
    /// Rename a temporary file into place.
    Rename,
    /// Delete a file.
    Delete,
}

impl Action {
    /// The error of this action on `path`, for `map_err`.
    pub(super) fn failed(self, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<'_> {
        move |source| StoreError::Io { action: self, path: path.into(), source }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Open => "open",
            Action::Create => "create",
            Action::Lock => "lock",
            Action::Read => "read",
            Action::Write => "write",
            Action::Sync => "sync",
            Action::Rename => "rename a temporary file to",
            Action::Delete => "delete",
        })
    }
}

fn article(what: &str) -> &'static str {
    if what.starts_with('a') { "an" } else { "a" }
}

fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space and try again",
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; choose a folder that this program may write"
        }
        io::ErrorKind::Unsupported => "; choose a folder on a local file system",
        _ => "",
    }
}

/// A few names, for people.
struct Listed<'a>(&'a [AdapterId]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (i, AdapterId { user, name }) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{user:?}", if i == 0 { "" } else { ", " })?;
            name.iter().try_for_each(|name| write!(f, " ({name:?})"))?;
        }
        match self.0.len() {
            0 => f.write_str("none"),
            len if len > SHOWN => write!(f, " and {} more", len - SHOWN),
            _ => Ok(()),
        }
    }
}

struct Checksum<'a>(&'a Option<RecordChecksum>);

impl fmt::Display for Checksum<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(checksum) => write!(f, "record {checksum}"),
            None => f.write_str("none"),
        }
    }
}
