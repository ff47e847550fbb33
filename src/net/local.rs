//! Clients on this machine: sockets in the file system for them, and which user they are.

use std::fs::Permissions;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

use super::socket::BACKLOG;
use crate::target::canonical_ip;

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

/// TCP connections of this network namespace (proc(5)). Where `/proc` shows processes alone, as to a service of systemd's, they are
/// found there still.
const CONNECTIONS: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// A connection that stands, in those files. One whose owner has closed it belongs to nobody, and is told as root's.
const ESTABLISHED: &str = "01";

/// The user whose connection leads from `peer` to `local`, where both are on this machine and it still stands.
///
/// # Errors
/// Of reading the kernel's tables.
pub fn user_of(peer: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    let ends = [canonical(peer), canonical(local)];
    for path in CONNECTIONS {
        let table = match std::fs::read_to_string(path) {
            // Without IPv6 there is but one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            table => table?,
        };
        let user = table.lines().skip(1).find_map(|line| user_in(line, ends));
        if user.is_some() {
            return Ok(user);
        }
    }
    Ok(None)
}

/// The user in a line of them, where it is of the connection with these ends.
fn user_in(line: &str, [from, to]: [SocketAddr; 2]) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let is_it = place(fields.next()?)? == from && place(fields.next()?)? == to;
    let stands = fields.next()? == ESTABLISHED;
    (is_it && stands).then(|| fields.nth(3)?.parse().ok())?
}

/// An address as it stands there: words of four bytes, each as the machine reads it, and the port.
fn place(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = if address.len() == 8 {
        Ipv4Addr::from(word(0)?).into()
    } else {
        let mut octets = [0; 16];
        for (at, octets) in octets.chunks_exact_mut(4).enumerate() {
            octets.copy_from_slice(&word(at)?);
        }
        Ipv6Addr::from(octets).into()
    };
    Some(canonical(SocketAddr::new(ip, port)))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(canonical_ip(address.ip()), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::unistd::geteuid;

    use super::*;

    #[test]
    fn a_connection_is_of_the_user_who_made_it_while_it_stands() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let local = listener.local_addr().unwrap();
            let client = TcpStream::connect(local).unwrap();
            let (_server, peer) = listener.accept().unwrap();
            assert_eq!(user_of(peer, local).unwrap(), Some(geteuid().as_raw()));
            assert_eq!(user_of(local, local).unwrap(), None);
            drop(client);
            assert_eq!(user_of(peer, local).unwrap(), None, "{at}");
        }
    }

    #[test]
    fn a_line_of_the_kernels_table_is_read() {
        // As a machine of the other byte order would write it, where this is one.
        let word = |address: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(address));
        let (from, to) = (word([127, 0, 0, 1]), word([127, 0, 0, 2]));
        let line = |state: &str| {
            format!(
                "  7: {from}:D2F0 {to}:0C39 {state} 00000000:00000000 00:00000000 00000000  1000 0 4711 1"
            )
        };
        let ends = ["127.0.0.1:54000", "127.0.0.2:3129"].map(|end| end.parse().unwrap());
        assert_eq!(user_in(&line("01"), ends), Some(1000));
        assert_eq!(user_in(&line("05"), ends), None);
        let [from, to] = ends;
        assert_eq!(user_in(&line("01"), [to, from]), None);
        assert_eq!(user_in("  7: nonsense", ends), None);
    }

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
