//! Files that settings name: their paths, and whether they can be used.

use std::{fs, io, path::Path};

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use super::{document::Document, faults::Origin, settings::Settings};

/// The file that keeps what remains of each limit: it is written, and need not exist yet.
const STATE_FILE: &str = "limits.state_file";

/// Resolves the paths and checks that their files are readable and the state file is writable.
///
/// A path in the configuration file is relative to that file, others to the working directory.
pub(super) fn resolve(settings: &mut Settings, document: &mut Document<'_>, folder: Option<&Path>) {
    let (cert, key) = settings.server.tls.as_mut().map(|tls| (&mut tls.cert, &mut tls.key)).unzip();
    for (key, path) in [
        ("server.tls.cert", cert),
        ("server.tls.key", key),
        ("upstream.ca_file", settings.upstream.ca_file.as_mut()),
        ("store.ca_file", settings.store.ca_file.as_mut()),
        (STATE_FILE, settings.limits.state_file.as_mut()),
    ] {
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { continue };
        if let (Origin::File(_), Some(folder)) = (document.origin(key), folder) {
            *path = folder.join(&*path);
        }
        let fault = match fs::File::open(&*path) {
            Err(why) if key != STATE_FILE || why.kind() != io::ErrorKind::NotFound => {
                Some(format!("{} cannot be read: {why}", path.display()))
            }
            _ if key == STATE_FILE => unwritable(path),
            _ => None,
        };
        if let Some(fault) = fault {
            document.refuse(key, fault, "");
        }
    }
}

/// Why the file could not be replaced.
fn unwritable(path: &Path) -> Option<String> {
    let shown = path.display();
    if path.is_dir() {
        return Some(format!("{shown} is a directory: name a file in it"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let why = access(folder, AccessFlags::W_OK | AccessFlags::X_OK).err()?;
    Some(match why {
        Errno::ENOENT => format!("{shown} cannot be written: there is no directory {}", folder.display()),
        why => format!("{shown} cannot be written: the directory {} is not writable ({})", folder.display(), why.desc()),
    })
}
