//! `token show` and `token rotate`: the file that TCP clients' tokens are compared with.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gpu_bridge::TOKEN_FILE;
use gpu_client::ClientError;

use crate::cli::Done;
use crate::cli::args::{TokenArgs, TokenCommand};
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{note, print};
use crate::serve::config::default_state_dir;

const TOKEN_BYTES: usize = 32;

/// Shows or replaces.
pub(crate) async fn token(context: &Context, command: TokenCommand) -> Done {
    match command {
        TokenCommand::Show(args) => {
            let token = read(&path(context, args).await)?;
            print(&format!("{token}\n"))?;
        }
        TokenCommand::Rotate(args) => {
            let path = path(context, args).await;
            read(&path)?;
            let token = random();
            replace(&path, &token).map_err(|error| failed("replace", &path, &error))?;
            note("the old token is refused from here on");
            print(&format!("{token}\n"))?;
        }
    }
    Ok(exit::OK)
}

async fn path(context: &Context, args: TokenArgs) -> PathBuf {
    let dir = match args.state_dir {
        Some(dir) => Some(dir),
        None => said_dir(context).await,
    };
    dir.unwrap_or_else(default_state_dir).join(TOKEN_FILE)
}

/// Where the broker that answers keeps its state.
async fn said_dir(context: &Context) -> Option<PathBuf> {
    match context.client.status().await {
        Ok(status) => status.state_dir.map(PathBuf::from),
        Err(error @ ClientError::TimedOut { .. }) => {
            note(&format!("{error}: looking in the usual place"));
            None
        }
        Err(_) => None,
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed("read", path, &error)
            .hint("a broker makes it at its first start; `--state-dir` says where"),
        _ => failed("read", path, &error),
    })?;
    Ok(text.trim().to_owned())
}

fn random() -> String {
    let mut bits = [0_u8; TOKEN_BYTES];
    getrandom::fill(&mut bits).expect("the kernel has random bytes once it has started");
    bits.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts `token` in the place of the old one at once: a reader sees the one or the other.
fn replace(path: &Path, token: &str) -> io::Result<()> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    let old = fs::metadata(path)?;
    let (uid, gid) = (
        std::os::unix::fs::MetadataExt::uid(&old),
        std::os::unix::fs::MetadataExt::gid(&old),
    );
    std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    file.write_all(format!("{token}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::refused(format!("failed to {verb} `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_replaced_and_stays_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(TOKEN_FILE);
        assert!(read(&path).is_err());
        fs::write(&path, "old\n").expect("a file");
        let token = random();
        replace(&path, &token).expect("a new file");
        assert_eq!(read(&path).as_deref(), Ok(token.as_str()));
        assert_eq!(token.len(), 64);
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(dir.path()).expect("a directory").count(),
            1,
            "nothing is left behind"
        );
    }
}
