//! The file: a redb database with one table, from [`sip::registrar::record::key`] to
//! [`sip::registrar::record::encode`].
//!
//! A transaction is on the disk as a whole or not at all, whenever the power fails. The file holds
//! who has registered from where, so only its owner may read it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use sip::registrar::record::{Clock, Record};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bindings");
/// Pages kept in memory; the bindings themselves are in the registrar.
const CACHE_BYTES: usize = 32 << 20;

/// Why bindings cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    /// The file cannot be opened or made.
    #[error("location.file: cannot open {0}: {1}; its folder must be there and writable")]
    Open(String, io::Error),
    /// Another process uses it.
    #[error("location.file: {0} is in use by another process")]
    InUse(String),
    /// Its content makes no sense.
    #[error(
        "location.file: {0} is damaged ({1}). Move it away, or set location.on_corrupt = \"empty\" \
         to have that done: the service then starts without bindings, and phones are found again \
         when they next register"
    )]
    Damaged(String, Box<redb::Error>),
    /// The thread that writes cannot be started.
    #[error("location.file: cannot start the thread that writes {0}: {1}")]
    Thread(String, io::Error),
}

impl LocationError {
    /// True where another file in its place would do.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(..))
    }
}

/// What was in the file.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) restored: usize,
    /// The keys of bindings that ended meanwhile.
    pub(super) expired: Vec<Vec<u8>>,
    /// Entries that this build cannot read.
    pub(super) unreadable: usize,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
    path: PathBuf,
}

/// What a transaction does: a key with its new record, or with none.
pub(super) type Writes = std::collections::HashMap<Vec<u8>, Option<Vec<u8>>>;

impl Store {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, LocationError> {
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| LocationError::Open(path.display().to_string(), error))?;
        let database = FileBackend::new(file)
            .and_then(|file| {
                let mut builder = Database::builder();
                builder
                    .set_cache_size(CACHE_BYTES)
                    .create_with_backend(file)
            })
            .map_err(|error| {
                let path = path.display().to_string();
                if matches!(error, DatabaseError::DatabaseAlreadyOpen) {
                    return LocationError::InUse(path);
                }
                LocationError::Damaged(path, Box::new(error.into()))
            })?;
        let path = path.to_owned();
        Ok(Self { database, path })
    }

    /// Gives away all that is in the file and not over; counts, and keeps the keys of, the rest.
    pub(super) fn read(
        &self,
        clock: &Clock,
        take: &mut dyn FnMut(Record),
    ) -> Result<Found, LocationError> {
        self.try_read(clock, take).map_err(|error| {
            LocationError::Damaged(self.path.display().to_string(), Box::new(error))
        })
    }

    fn try_read(&self, clock: &Clock, take: &mut dyn FnMut(Record)) -> Result<Found, redb::Error> {
        let mut found = Found::default();
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(TABLE) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(found),
            table => table?,
        };
        for entry in table.iter()? {
            let (key, value) = entry?;
            match Record::decode(value.value(), clock) {
                Ok(record) if record.binding.expires_at > clock.at => {
                    found.restored += 1;
                    take(record);
                }
                Ok(_) => found.expired.push(key.value().to_vec()),
                // Perhaps a newer build's: it stays until something takes its place.
                Err(_) => found.unreadable += 1,
            }
        }
        Ok(found)
    }

    /// Does all of it, or nothing.
    pub(super) fn commit(&self, writes: &Writes) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, record) in writes {
                match record {
                    Some(record) => drop(table.insert(key.as_slice(), record.as_slice())?),
                    None => drop(table.remove(key.as_slice())?),
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Takes out every entry that `keep` does not want; gives their number.
    pub(super) fn retain(&self, keep: impl Fn(&[u8]) -> bool) -> Result<u64, redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut removed = 0;
        transaction.open_table(TABLE)?.retain(|key, _| {
            let kept = keep(key);
            removed += u64::from(!kept);
            kept
        })?;
        transaction.commit()?;
        Ok(removed)
    }
}

/// Renames a damaged file; gives its new name.
pub(super) fn move_aside(path: &Path) -> Result<PathBuf, LocationError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(
        ".damaged-{}",
        super::writer::clock().unix_ms / 1000
    ));
    let aside = PathBuf::from(name);
    std::fs::rename(path, &aside)
        .map_err(|error| LocationError::Open(path.display().to_string(), error))?;
    Ok(aside)
}
