//! Sockets in the file system, for local clients.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

use super::socket::BACKLOG;

/// Listens at a path, for those alone whom `mode` admits, from its first moment. One that nobody listens on any more is in nobody's
/// way.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] where somebody listens there, or something else stands there.
pub fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let is_left_over = path
        .symlink_metadata()
        .is_ok_and(|data| data.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_left_over {
        std::fs::remove_file(path)?;
    }
    let socket = bind(path, mode)?;
    // What the umask took away. Nobody can connect before it listens.
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A socket whose file is never wider than `mode`: Linux makes the file with the mode of the socket itself, less the umask
/// (`unix_bind` in `net/unix/af_unix.c`). The umask is the process's, and not ours to change.
fn bind(path: &Path, mode: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::from_bits_truncate(mode))?;
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_socket_is_never_open_to_more_than_it_is_for() {
        let folder = tempfile::tempdir().unwrap();
        for wanted in [0o600, 0o660] {
            let path = folder.path().join(format!("{wanted:o}"));
            let socket = bind(&path, wanted).unwrap();
            assert_eq!(mode(&path) & !wanted, 0, "{:o}", mode(&path));
            drop(socket);
            std::fs::remove_file(&path).unwrap();
            let _listener = listen(&path, wanted).unwrap();
            assert_eq!(mode(&path), wanted);
        }
    }

    #[test]
    fn only_what_nobody_listens_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let listener = listen(&path, 0o600).unwrap();
        let again = listen(&path, 0o600).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        let file = folder.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        let taken = listen(&file, 0o600).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }
}
