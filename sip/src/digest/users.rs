//! The users of a realm and the hashes of their passwords, as `htdigest` writes them.
//!
//! One line for each: `user:realm:HA1`, or `user:realm:HA1:algorithm`. HA1 is the hash of
//! `user:realm:password` in hexadecimal digits: 32 of them are MD5, 64 are SHA-256 unless the
//! fourth field says SHA-512-256. A user may have a line for each algorithm. Empty lines and lines
//! that start with `#` say nothing; lines of other realms are counted and left alone.
//!
//! An algorithm is offered when all users have it, since a challenge goes out before anybody has
//! said who is asking.

use std::fmt;

use hashbrown::HashMap;
use thiserror::Error;

use super::{Algorithm, read_hex};

/// More lines are no file for one concentrator.
const MAX_USERS: usize = 2_000_000;

/// A line that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("line {line}: {fault}")]
pub struct UsersError {
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong with it.
    pub fault: UsersFault,
}

/// What is wrong with a line, or with all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UsersFault {
    /// Not three or four fields.
    #[error("is not user:realm:HA1 or user:realm:HA1:algorithm")]
    Fields,
    /// No user, or one with octets that no user has.
    #[error("the user is empty or has control characters")]
    User,
    /// HA1 has not as many hexadecimal digits as its algorithm gives.
    #[error("HA1 must be 32 (MD5) or 64 (SHA-256, SHA-512-256) hexadecimal digits")]
    Ha1,
    /// The fourth field.
    #[error("the algorithm is none of MD5, SHA-256 and SHA-512-256, or HA1 is not as long as it")]
    Algorithm,
    /// The same user and algorithm again.
    #[error("this user has an HA1 of this algorithm already; remove one of the lines")]
    Twice,
    /// Too many users.
    #[error("more than 2,000,000 users")]
    TooMany,
    /// No line is for our realm.
    #[error("no user of the realm")]
    Nobody,
    /// No algorithm could be offered.
    #[error(
        "there is no algorithm that every user has an HA1 of; give all of them one, such as MD5"
    )]
    NoCommonAlgorithm,
}

/// HA1 by algorithm.
#[derive(Clone, Copy, Default)]
struct Secrets {
    md5: Option<[u8; 16]>,
    sha256: Option<[u8; 32]>,
    sha512_256: Option<[u8; 32]>,
}

impl Secrets {
    fn of(&self, algorithm: Algorithm) -> Option<&[u8]> {
        match algorithm {
            Algorithm::Md5 => self.md5.as_ref().map(<[u8; 16]>::as_slice),
            Algorithm::Sha256 => self.sha256.as_ref().map(<[u8; 32]>::as_slice),
            Algorithm::Sha512T256 => self.sha512_256.as_ref().map(<[u8; 32]>::as_slice),
        }
    }

    /// Sets one; `None` where the digits are not as many as the algorithm's.
    fn set(&mut self, algorithm: Algorithm, digits: &[u8]) -> Option<()> {
        match algorithm {
            Algorithm::Md5 => self.md5 = Some(from_hex(digits)?),
            Algorithm::Sha256 => self.sha256 = Some(from_hex(digits)?),
            Algorithm::Sha512T256 => self.sha512_256 = Some(from_hex(digits)?),
        }
        Some(())
    }
}

/// The users of one realm.
#[derive(Default)]
pub struct Users {
    by_name: HashMap<Box<[u8]>, Secrets>,
    /// In the order of [`Algorithm::STRONGEST_FIRST`].
    offered: [bool; 3],
    other_realms: usize,
}

/// Printing it prints no secret.
impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({})", self.by_name.len())
    }
}

impl Users {
    /// Reads a file. One bad line and there are no users at all: half a file is no file.
    pub fn parse(text: &[u8], realm: &str) -> Result<Self, UsersError> {
        let mut users = Self::default();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let fault = |fault| UsersError {
                line: index + 1,
                fault,
            };
            users.add_line(line.trim_ascii(), realm).map_err(fault)?;
        }
        let fault = |fault| UsersError { line: 0, fault };
        if users.by_name.is_empty() {
            return Err(fault(UsersFault::Nobody));
        }
        users.offered = Algorithm::STRONGEST_FIRST.map(|algorithm| {
            users
                .by_name
                .values()
                .all(|has| has.of(algorithm).is_some())
        });
        if users.offered == [false; 3] {
            return Err(fault(UsersFault::NoCommonAlgorithm));
        }
        Ok(users)
    }

    fn add_line(&mut self, line: &[u8], realm: &str) -> Result<(), UsersFault> {
        if line.is_empty() || line.starts_with(b"#") {
            return Ok(());
        }
        let mut fields = line.split(|byte| *byte == b':');
        let (Some(user), Some(of_realm), Some(ha1)) = (fields.next(), fields.next(), fields.next())
        else {
            return Err(UsersFault::Fields);
        };
        let named = fields.next();
        if fields.next().is_some() {
            return Err(UsersFault::Fields);
        }
        if user.is_empty() || user.iter().any(u8::is_ascii_control) {
            return Err(UsersFault::User);
        }
        let algorithm = match (named, ha1.len()) {
            (Some(token), _) => Algorithm::from_token(token)
                .filter(|algorithm| ha1.len() == 2 * algorithm.hash_len())
                .ok_or(UsersFault::Algorithm)?,
            (None, 32) => Algorithm::Md5,
            (None, 64) => Algorithm::Sha256,
            (None, _) => return Err(UsersFault::Ha1),
        };
        if of_realm != realm.as_bytes() {
            self.other_realms += 1;
            return Ok(());
        }
        if self.by_name.len() >= MAX_USERS {
            return Err(UsersFault::TooMany);
        }
        let secrets = self.by_name.entry(user.into()).or_default();
        if secrets.of(algorithm).is_some() {
            return Err(UsersFault::Twice);
        }
        secrets.set(algorithm, ha1).ok_or(UsersFault::Ha1)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Lines that were of another realm.
    pub fn of_other_realms(&self) -> usize {
        self.other_realms
    }

    /// The algorithms that all users have, the strongest first.
    pub fn offered(&self) -> impl Iterator<Item = Algorithm> + use<> {
        Algorithm::STRONGEST_FIRST
            .into_iter()
            .zip(self.offered)
            .filter_map(|(algorithm, offered)| offered.then_some(algorithm))
    }

    /// True for an algorithm that all users have.
    pub fn offers(&self, algorithm: Algorithm) -> bool {
        self.offered().any(|offered| offered == algorithm)
    }

    /// HA1 of a user.
    pub(super) fn ha1(&self, user: &[u8], algorithm: Algorithm) -> Option<&[u8]> {
        self.by_name.get(user)?.of(algorithm)
    }
}

fn from_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    read_hex(digits, &mut bytes)?;
    Some(bytes)
}
