//! The two secrets of a broker: the bearer token of TCP callers, and the key that lease secrets are made with.
//!
//! Both are files of the state directory, mode 0600, made at the first start. The token's file is looked at
//! again whenever it changes, so that a rotation counts from the next request on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gpu_lease::LeaseId;
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// The token's file beneath the state directory.
pub const TOKEN_FILE: &str = "token";
/// The key's file beneath the state directory.
pub const LEASE_KEY_FILE: &str = "lease-key";

const SECRET_BYTES: usize = 32;
const TOKEN_CHARS_MIN: usize = 32;
const FILE_BYTES_MAX: u64 = 1024;

/// What callers are told apart by.
#[derive(Debug)]
pub struct Secrets {
    token: TokenSource,
    lease_key: [u8; SECRET_BYTES],
}

/// A secret cannot be made or trusted.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Not what was once written.
    #[error("`{}` is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Others than the broker could know it.
    #[error("`{}` can be read by others, or belongs to somebody else: it must be the broker's own, mode 0600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("`{}` cannot be used: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Secrets {
    /// The secrets of `state_dir`, made if they are not there.
    ///
    /// # Errors
    /// A file cannot be made, is damaged, or others can read it.
    pub fn open(state_dir: &Path) -> Result<Self, SecretError> {
        let token_path = state_dir.join(TOKEN_FILE);
        create_if_absent(&token_path)?;
        let (stamp, token) = read_token(&token_path)?;
        let key_path = state_dir.join(LEASE_KEY_FILE);
        create_if_absent(&key_path)?;
        Ok(Self {
            token: TokenSource::File {
                path: token_path,
                read: Mutex::new((stamp, Some(token.into()))),
            },
            lease_key: read_key(&key_path)?,
        })
    }

    /// Secrets that end with the process, for a broker that keeps no state.
    pub fn ephemeral() -> Self {
        Self {
            token: TokenSource::Fixed(hex(&random()).into()),
            lease_key: random(),
        }
    }

    /// The token that TCP callers must show; `None` while its file cannot be trusted.
    pub fn token(&self) -> Option<Arc<str>> {
        match &self.token {
            TokenSource::Fixed(token) => Some(token.clone()),
            TokenSource::File { path, read } => current(path, &mut read.lock()),
        }
    }

    /// Whether `shown` is the token. Takes as long for a near miss as for a wild guess.
    pub(crate) fn is_token(&self, shown: &str) -> bool {
        let token = self.token();
        token.is_some_and(|token| token.as_bytes().ct_eq(shown.as_bytes()).into())
    }

    /// The secret of a lease: the same each time, and stored nowhere.
    pub(crate) fn of_lease(&self, id: LeaseId) -> String {
        URL_SAFE_NO_PAD.encode(self.mac(id).finalize().into_bytes())
    }

    /// Whether `shown` is the secret of the lease `id`, in constant time.
    pub(crate) fn is_of_lease(&self, id: LeaseId, shown: &str) -> bool {
        let Ok(shown) = URL_SAFE_NO_PAD.decode(shown) else {
            return false;
        };
        self.mac(id).verify_slice(&shown).is_ok()
    }

    fn mac(&self, id: LeaseId) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.lease_key)
            .expect("HMAC takes a key of any length");
        mac.update(id.to_string().as_bytes());
        mac
    }
}

#[derive(Debug)]
enum TokenSource {
    Fixed(Arc<str>),
    File {
        path: PathBuf,
        read: Mutex<(Stamp, Option<Arc<str>>)>,
    },
}

/// What tells one content of a file from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The token as its file has it now; one that cannot be trusted lets nobody in.
fn current(path: &Path, read: &mut (Stamp, Option<Arc<str>>)) -> Option<Arc<str>> {
    let stamp = fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata));
    if stamp == Some(read.0) {
        return read.1.clone();
    }
    match read_token(path) {
        Ok((stamp, token)) => *read = (stamp, Some(token.into())),
        Err(error) => {
            tracing::error!("no token is taken: {error}");
            read.1 = None;
            read.0 = stamp.unwrap_or(read.0);
        }
    }
    read.1.clone()
}

/// Makes `path` with a fresh secret. The file appears whole or not at all, and never replaces another.
fn create_if_absent(path: &Path) -> Result<(), SecretError> {
    let failed = |source| SecretError::Io {
        path: path.to_owned(),
        source,
    };
    if path.try_exists().map_err(failed)? {
        return Ok(());
    }
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let linked = write_new(&fresh).and_then(|()| fs::hard_link(&fresh, path));
    // The name that was written to is of no use any more, whatever came of it.
    drop(fs::remove_file(&fresh));
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.exists() => Ok(()),
        linked => linked.map_err(failed),
    }
}

fn write_new(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{}", hex(&random()))?;
    file.sync_all()?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn read_token(path: &Path) -> Result<(Stamp, String), SecretError> {
    let (stamp, text) = read_private(path)?;
    let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
    match graphic && text.len() >= TOKEN_CHARS_MIN {
        true => Ok((stamp, text)),
        false => Err(SecretError::Damaged {
            path: path.to_owned(),
            what: "it holds no token (`gpu-manager token rotate` makes one)",
        }),
    }
}

fn read_key(path: &Path) -> Result<[u8; SECRET_BYTES], SecretError> {
    let (_, text) = read_private(path)?;
    unhex(&text).ok_or(SecretError::Damaged {
        path: path.to_owned(),
        what: "it holds no key (without it, secrets of leases now held are lost; remove it to go on)",
    })
}

/// The text of a file that nobody else can read.
fn read_private(path: &Path) -> Result<(Stamp, String), SecretError> {
    let failed = |source| SecretError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    if !own || metadata.mode() & 0o077 != 0 || !metadata.is_file() {
        return Err(SecretError::Exposed {
            path: path.to_owned(),
        });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok((Stamp::of(&metadata), text.trim().to_owned()))
}

fn random() -> [u8; SECRET_BYTES] {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes once it has started");
    bytes
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; SECRET_BYTES]> {
    let mut bytes = [0; SECRET_BYTES];
    if text.len() != 2 * SECRET_BYTES || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("a file").permissions().mode() & 0o777
    }

    #[test]
    fn secrets_are_made_once_and_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Secrets::open(dir.path()).expect("an empty directory");
        let again = Secrets::open(dir.path()).expect("its own files");
        assert_eq!(first.token(), again.token());
        assert_eq!(first.lease_key, again.lease_key);
        for name in [TOKEN_FILE, LEASE_KEY_FILE] {
            assert_eq!(mode(&dir.path().join(name)), 0o600, "{name}");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 2);
    }

    #[test]
    fn a_rotated_token_counts_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let secrets = Secrets::open(dir.path()).expect("an empty directory");
        let old = secrets.token().expect("a token");
        assert!(secrets.is_token(&old));
        let path = dir.path().join(TOKEN_FILE);
        let fresh = dir.path().join("fresh");
        write_new(&fresh).expect("a file");
        fs::rename(&fresh, &path).expect("the same directory");
        assert!(!secrets.is_token(&old), "the old token is over");
        assert!(secrets.is_token(&secrets.token().expect("a token")));
        fs::remove_file(&path).expect("it is there");
        assert!(!secrets.is_token(&old), "without a file nobody is let in");
        assert!(!secrets.is_token(""));
    }

    #[test]
    fn what_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(Secrets::open(dir.path()).expect("an empty directory"));
        let path = dir.path().join(LEASE_KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("our own file");
        assert!(matches!(
            Secrets::open(dir.path()),
            Err(SecretError::Exposed { .. })
        ));
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        for (name, text) in [
            (TOKEN_FILE, ""),
            (TOKEN_FILE, "short\n"),
            (LEASE_KEY_FILE, "zz"),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            drop(Secrets::open(dir.path()).expect("an empty directory"));
            fs::write(dir.path().join(name), text).expect("our own file");
            let error = Secrets::open(dir.path()).expect_err("damaged");
            assert!(
                matches!(error, SecretError::Damaged { .. }),
                "{name} {text:?}: {error}"
            );
        }
    }

    #[test]
    fn a_lease_secret_is_of_one_lease_only() {
        let secrets = Secrets::ephemeral();
        let (one, two) = (LeaseId::from_bits(1), LeaseId::from_bits(2));
        let secret = secrets.of_lease(one);
        assert_eq!(secret, secrets.of_lease(one));
        assert!(secrets.is_of_lease(one, &secret));
        for wrong in [
            "",
            "x",
            "l-000000000001",
            &secret[..42],
            &secrets.of_lease(two),
        ] {
            assert!(!secrets.is_of_lease(one, wrong), "{wrong}");
        }
        assert!(!Secrets::ephemeral().is_of_lease(one, &secret));
    }
}
