//! Pipes of the kernel, through which bytes go from one socket to another without passing through this process (splice(2)).
//!
//! A pipe is borrowed while bytes flow: a connection in which nothing moves has none. The process has few of them, because
//! each takes two descriptors and a part of the memory that the kernel grants a user for all pipes (pipe(7)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// How many are open at most, in all.
pub const MOST: usize = 128;

/// The length of each, of which the kernel makes a number of slots, one for 4 KiB. A slot takes one piece of a packet, be it
/// short, so a pipe is full before it holds this much.
const LEN: i32 = 256 * 1024;

/// So much is taken in at a time, at most.
const FILL: usize = 256 * 1024;

/// The process's.
static POOL: Pool = Pool::new();

/// Whether the kernel, or a sandbox in front of it, does not let this process splice.
static IS_REFUSED: AtomicBool = AtomicBool::new(false);

/// It has done so.
static IS_ALLOWED: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
struct Pool(Mutex<Opened>);

#[derive(Debug)]
struct Opened {
    /// Empty, and nobody's.
    free: Vec<Ends>,
    /// Those, and the borrowed ones.
    all: usize,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A borrowed pipe. One that is dropped empty goes back; one that still holds bytes is closed.
#[derive(Debug)]
pub struct Pipe {
    ends: Option<Ends>,
    held: usize,
    pool: &'static Pool,
}

impl Pipe {
    /// Borrows one; `None` where all are lent, no more can be opened, or they are of no use here.
    pub fn borrow() -> Option<Self> {
        if IS_REFUSED.load(Ordering::Relaxed) {
            return None;
        }
        POOL.lend()
    }

    /// How many are lent.
    #[cfg(test)]
    pub(crate) fn lent() -> usize {
        let opened = POOL.opened();
        opened.all - opened.free.len()
    }

    /// How many bytes it holds.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether an error of [`Pipe::fill`] says that this process may not splice. Nothing was taken in then, and nobody
    /// borrows a pipe any more. Where it may, an error is the socket's.
    pub fn is_refusal(error: &io::Error) -> bool {
        if IS_ALLOWED.load(Ordering::Relaxed) {
            return false;
        }
        // What a filter of system calls answers is up to whoever wrote it; a socket fails of none of these but after an ICMP
        // message, and long behind its first bytes.
        let errno = error.raw_os_error();
        let is_refusal = matches!(
            errno,
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL)
        );
        if is_refusal && !IS_REFUSED.swap(true, Ordering::Relaxed) {
            tracing::info!(%error, "splice(2) is not allowed here: tunnels are copied");
        }
        is_refusal
    }

    /// Takes in what `socket` has; zero at the end of its stream. Only for an empty pipe: of a full one "would block" says
    /// nothing of the socket.
    pub(super) fn fill(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        let filled = splice(socket, None, &ends.write, None, FILL, flags)?;
        if !IS_ALLOWED.load(Ordering::Relaxed) {
            IS_ALLOWED.store(true, Ordering::Relaxed);
        }
        self.held += filled;
        Ok(filled)
    }

    /// Hands to `socket` what it takes of the bytes held.
    pub(super) fn drain(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        let drained = splice(&ends.read, None, socket, None, self.held, flags)?;
        self.held -= drained;
        Ok(drained)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut opened = self.pool.opened();
        match self.ends.take() {
            Some(ends) if self.held == 0 => opened.free.push(ends),
            _ => opened.all -= 1,
        }
    }
}

impl Pool {
    const fn new() -> Self {
        Self(Mutex::new(Opened {
            free: Vec::new(),
            all: 0,
        }))
    }

    fn lend(&'static self) -> Option<Pipe> {
        let mut opened = self.opened();
        let free = opened.free.pop();
        let ends = match free {
            Some(ends) => ends,
            None if opened.all < MOST => {
                let ends = Ends::open().ok()?;
                opened.all += 1;
                ends
            }
            None => return None,
        };
        Some(Pipe {
            ends: Some(ends),
            held: 0,
            pool: self,
        })
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ends {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // One of the usual length, or shorter where the user has many, serves as well.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(LEN));
        Ok(Self { read, write })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::net::socket::tests::pair;

    #[tokio::test]
    async fn bytes_and_the_end_pass_from_socket_to_socket() {
        let (mut client, from) = pair().await;
        let (to, mut server) = pair().await;
        client.write_all(b"over there").await.unwrap();
        client.shutdown().await.unwrap();
        let mut pipe = Pipe::borrow().unwrap();
        let fill = std::future::poll_fn(|cx| from.poll_fill(cx, &mut pipe)).await;
        assert_eq!(fill.unwrap(), 10);
        while pipe.held() > 0 {
            std::future::poll_fn(|cx| to.poll_drain(cx, &mut pipe))
                .await
                .unwrap();
        }
        let fill = std::future::poll_fn(|cx| from.poll_fill(cx, &mut pipe)).await;
        assert_eq!(fill.unwrap(), 0);
        let mut heard = [0; 10];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"over there");
    }

    #[tokio::test]
    async fn there_are_only_so_many_and_each_comes_back() {
        static OWN: Pool = Pool::new();
        let all: Vec<_> = std::iter::from_fn(|| OWN.lend()).collect();
        assert_eq!((all.len(), OWN.opened().all), (MOST, MOST));
        drop(all);
        let (mut peer, ours) = pair().await;
        peer.write_all(b"unsent").await.unwrap();
        let mut pipe = OWN.lend().unwrap();
        let fill = std::future::poll_fn(|cx| ours.poll_fill(cx, &mut pipe)).await;
        assert_eq!(fill.unwrap(), 6);
        // Nobody else may find those bytes.
        drop(pipe);
        assert_eq!(OWN.opened().all, MOST - 1);
        assert!(OWN.lend().is_some_and(|pipe| pipe.held() == 0));
    }
}
