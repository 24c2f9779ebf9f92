//! A server's process: launched here or found running, its end seen at once.

use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

/// A process, by a descriptor: a pid may be another process's a moment later, a descriptor never.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    descriptor: OwnedFd,
    end: End,
}

/// How its end is heard of.
#[derive(Debug)]
enum End {
    /// To be reaped.
    Child(Child),
    /// What was adopted is another's child.
    Adopted(oneshot::Receiver<()>),
}

impl Process {
    /// Launches this program with `arguments`. It goes on when its parent is killed.
    pub(super) fn launch(arguments: &[OsString]) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            // A Ctrl-C in the terminal is the detector's to pass on, in order.
            .process_group(0)
            .spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("the process has ended already"))?;
        match descriptor(pid) {
            Ok(descriptor) => Ok(Self { pid, descriptor, end: End::Child(child) }),
            Err(error) => {
                // Nobody would watch it.
                child.start_kill()?;
                Err(error)
            }
        }
    }

    /// A process of this machine that runs already.
    pub(super) fn adopt(pid: u32) -> io::Result<Self> {
        let descriptor = descriptor(pid)?;
        let watched = descriptor.try_clone()?;
        let (ended, end) = oneshot::channel();
        // tokio takes no descriptors of others without `unsafe`. The thread ends with the process, or with this one.
        std::thread::Builder::new().name("adopted".to_owned()).spawn(move || {
            let mut watched = [PollFd::new(&watched, PollFlags::IN)];
            while poll(&mut watched, None) == Err(rustix::io::Errno::INTR) {}
            // The detector may have ended meanwhile.
            let _ = ended.send(());
        })?;
        Ok(Self { pid, descriptor, end: End::Adopted(end) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns when it has ended, with what is known of how. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> String {
        match &mut self.end {
            End::Child(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(e) => format!("its end is not known: {e}"),
            },
            End::Adopted(end) => match end.await {
                Ok(()) => "it was another detector's child: how it ended is not known".to_owned(),
                // Not to be waited for: its silence will tell.
                Err(_) => pending().await,
            },
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.descriptor, signal)?)
    }
}

fn descriptor(pid: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| io::Error::other(format!("{pid} is no pid")))?;
    Ok(pidfd_open(number, PidfdFlags::empty())?)
}
