// SPDX-License-Identifier: GPL-2.0

//! A Unix socket to listen on.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::info;
use thiserror::Error;

/// A socket that can't be had.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("{} is in use: a server listens there; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    /// There is something else.
    #[error("{} exists and is not a socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// It can't be bound.
    #[error("can't listen on {}: {source}; does its directory exist, and may you write there?", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A socket that is removed when dropped.
pub struct Socket {
    path: PathBuf,
}

impl Socket {
    /// The socket at `path`, which another handle was made for.
    pub fn at(path: &Path) -> Self {
        Self { path: path.into() }
    }

    /// Binds `path`; a stale socket that nobody listens on is removed first.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.into()));
            }
            Ok(_) => match UnixStream::connect(path) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    info!("removing the stale socket {}", path.display());
                    // If that fails, binding tells why.
                    let _ = fs::remove_file(path);
                }
                _ => return Err(SocketError::InUse(path.into())),
            },
            Err(_) => {}
        }
        let bind_error = |source| SocketError::Bind {
            path: path.into(),
            source,
        };
        // Between bind and listen a socket refuses connections and looks stale. It is made under
        // another name and gets its own when it listens, unless somebody was faster: who sees the
        // socket can connect to it.
        let hidden = {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!(".{name}.{:x}", std::process::id()))
        };
        let listener = UnixListener::bind(&hidden).map_err(bind_error)?;
        let linked = fs::hard_link(&hidden, path);
        let _ = fs::remove_file(&hidden);
        linked.map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists => SocketError::InUse(path.into()),
            _ => bind_error(source),
        })?;
        Ok((Self::at(path), listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (socket, listener) = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));
        drop(listener);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("file");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(
            Socket::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        let nowhere = dir.as_path().join("no/such/socket");
        assert!(matches!(
            Socket::bind(&nowhere),
            Err(SocketError::Bind { .. })
        ));
    }
}
