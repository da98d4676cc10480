//! Both ends of the launcher: `run` starts it and tells it when; it becomes the command.
//!
//! They talk over a socket that is the launcher's standard input. It brings the environment as one line of
//! JSON and, beside it, the standard input that the command is to have. If `run` dies first, the socket
//! closes and the launcher exits.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::Pid;

use crate::cli::exit::{Failure, OWN_FAILURE};
use crate::cli::run::program;

const LINE_BYTES_MAX: usize = 1 << 20;

/// A process that waits to become a command.
#[derive(Debug)]
pub(crate) struct Launcher {
    pid: Pid,
    socket: UnixStream,
}

impl Launcher {
    /// Starts one, in a process group of its own.
    pub(crate) fn spawn(command: &[OsString]) -> Result<Self, Failure> {
        let failed =
            |error: io::Error| Failure::own(format!("failed to start the launcher: {error}"));
        let (socket, theirs) = UnixStream::pair().map_err(failed)?;
        // The running program, whatever has become of its file since.
        let child = Command::new("/proc/self/exe")
            .arg0("gpu-manager")
            .args(["launch", "--"])
            .args(command)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            pid: Pid::from_child(&child),
            socket,
        })
    }

    /// Its process id, and later the command's; also its process group.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets it become the command, with `environment` added to this process's.
    pub(crate) fn start(self, environment: &BTreeMap<String, String>) -> Result<(), Failure> {
        let failed =
            |error: io::Error| Failure::own(format!("failed to start the command: {error}"));
        let mut line = serde_json::to_vec(environment).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        send(&self.socket, &line).map_err(failed)
    }
}

/// What the launcher does: waits, and becomes the command.
pub(crate) fn launch(command: &[OsString]) -> ExitCode {
    let (environment, stdin) = match receive() {
        Ok(Some(told)) => told,
        // `run` has gone, and has said why.
        Ok(None) => return ExitCode::from(OWN_FAILURE),
        Err(error) => {
            let failure = Failure::own(format!("nobody told what to run: {error}"));
            return failure
                .hint("`launch` is for `gpu-manager run` alone")
                .report();
        }
    };
    if let Err(error) = rustix::stdio::dup2_stdin(&stdin) {
        return Failure::own(format!("failed to restore standard input: {error}")).report();
    }
    let (program, arguments) = (&command[0], &command[1..]);
    let error = Command::new(program)
        .args(arguments)
        .envs(environment)
        .exec();
    program::failure(program, &error).report()
}

fn send(mut socket: &UnixStream, line: &[u8]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [rustix::stdio::stdin()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = sendmsg(
        socket,
        &[IoSlice::new(line)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    socket.write_all(&line[sent..])
}

type Told = (BTreeMap<String, String>, OwnedFd);

/// The line and the descriptor that come over standard input; `None` if it closes without them.
fn receive() -> io::Result<Option<Told>> {
    let mut line = Vec::new();
    let mut stdin = None;
    while !line.ends_with(b"\n") && line.len() < LINE_BYTES_MAX {
        let mut piece = [0_u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            rustix::stdio::stdin(),
            &mut [IoSliceMut::new(&mut piece)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let bytes = match received {
            Err(rustix::io::Errno::INTR) => continue,
            // A `run` that was killed with something unread leaves a reset instead of an end.
            Err(rustix::io::Errno::CONNRESET) => 0,
            received => received?.bytes,
        };
        if bytes == 0 {
            return Ok(None);
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                stdin = fds.next().or(stdin);
            }
        }
        line.extend_from_slice(&piece[..bytes]);
    }
    let stdin = stdin.ok_or_else(|| io::Error::other("no standard input came with it"))?;
    Ok(Some((serde_json::from_slice(&line)?, stdin)))
}
