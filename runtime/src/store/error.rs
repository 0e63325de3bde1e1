use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use inlay_format::record::{RecordChecksum, RecordError};
use inlay_format::state::StateError;

/// Why a store cannot do what it was asked. The files that were there are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A user name that the store does not take.
    #[error("{user:?} cannot be a user name: {reason}")]
    User {
        /// The name.
        user: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The folder is not there.
    #[error("there is no adapter store at {}; train an adapter first, or name another folder", .dir.display())]
    NoStore {
        /// The folder.
        dir: PathBuf,
    },
    /// The user has no adapter.
    #[error("no adapter of {user:?} in {}; it holds {}", .dir.display(), Listed(.known))]
    NoAdapter {
        /// The user.
        user: String,
        /// The store's folder.
        dir: PathBuf,
        /// The users who have one.
        known: Vec<String>,
    },
    /// The user's record cannot be used.
    #[error("the adapter of {user:?} at {} cannot be used", .path.display())]
    Record {
        /// The user.
        user: String,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: RecordError,
    },
    /// The bytes to save are not a whole record.
    #[error("the adapter of {user:?} was not saved")]
    NotSaved {
        /// The user.
        user: String,
        /// What is wrong with it.
        source: RecordError,
    },
    /// The optimizer's state cannot be used.
    #[error("the training state of {user:?} at {} cannot be used", .path.display())]
    State {
        /// The user.
        user: String,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: StateError,
    },
    /// Another process saved or deleted the user's adapter meanwhile.
    #[error(
        "the adapter of {user:?} at {} changed meanwhile: expected {}, found {}; load it and train again",
        .path.display(), Checksum(.expected), Checksum(.found)
    )]
    Changed {
        /// The user.
        user: String,
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
struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (i, user) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{user:?}", if i == 0 { "" } else { ", " })?;
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
