//! Pipes of the kernel, through which bytes go from one socket to another without passing through this process (splice(2)).
//!
//! A pipe is borrowed while bytes flow: a connection in which nothing moves has none. The process has few of them, because
//! each takes two descriptors and a part of the memory that the kernel grants a user for all pipes (pipe(7)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
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

static POOL: Mutex<Pool> = Mutex::new(Pool {
    free: Vec::new(),
    open: 0,
});

#[derive(Debug)]
struct Pool {
    /// Empty, and nobody's.
    free: Vec<Ends>,
    /// Those, and the borrowed ones.
    open: usize,
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
}

impl Pipe {
    /// Borrows one; `None` where all are lent, or no more can be opened.
    pub fn borrow() -> Option<Self> {
        let mut pool = pool();
        let free = pool.free.pop();
        let ends = match free {
            Some(ends) => ends,
            None if pool.open < MOST => {
                let ends = Ends::open().ok()?;
                pool.open += 1;
                ends
            }
            None => return None,
        };
        Some(Self {
            ends: Some(ends),
            held: 0,
        })
    }

    /// How many are lent.
    #[cfg(test)]
    pub(crate) fn lent() -> usize {
        let pool = pool();
        pool.open - pool.free.len()
    }

    /// How many bytes it holds.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes in what `socket` has; zero at the end of its stream. Only for an empty pipe: of a full one "would block" says
    /// nothing of the socket.
    pub(super) fn fill(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        let filled = splice(socket, None, &ends.write, None, FILL, flags)?;
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
        let mut pool = pool();
        match self.ends.take() {
            Some(ends) if self.held == 0 => pool.free.push(ends),
            _ => pool.open -= 1,
        }
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

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
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
        let all: Vec<_> = std::iter::from_fn(Pipe::borrow).collect();
        assert!(all.len() <= MOST && pool().open == MOST);
        drop(all);
        let (mut peer, ours) = pair().await;
        peer.write_all(b"unsent").await.unwrap();
        let mut pipe = Pipe::borrow().unwrap();
        let fill = std::future::poll_fn(|cx| ours.poll_fill(cx, &mut pipe)).await;
        assert_eq!(fill.unwrap(), 6);
        // Nobody else may find those bytes.
        drop(pipe);
        assert!(pool().open < MOST);
        assert!(Pipe::borrow().is_some_and(|pipe| pipe.held() == 0));
    }
}
