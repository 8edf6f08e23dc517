//! The files that settings name: where they are, and whether they can be used.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use super::{document::Document, faults::Origin, settings::Settings};

/// The file that keeps what is left of each limit: it is written, and need not be there yet.
const STATE_FILE: &str = "limits.state_file";

/// Every path that is set, by its key.
fn paths(settings: &mut Settings) -> impl Iterator<Item = (&'static str, &mut PathBuf)> {
    let (cert, key) = settings.server.tls.as_mut().map(|tls| (&mut tls.cert, &mut tls.key)).unzip();
    let paths = [
        ("server.tls.cert", cert),
        ("server.tls.key", key),
        ("upstream.ca_file", settings.upstream.ca_file.as_mut()),
        ("store.ca_file", settings.store.ca_file.as_mut()),
        (STATE_FILE, settings.limits.state_file.as_mut()),
    ];
    paths.into_iter().filter_map(|(key, path)| Some((key, path?))).filter(|(_, path)| !path.as_os_str().is_empty())
}

/// A relative path in the file is relative to the file; elsewhere it is relative to the working directory.
pub(super) fn resolve_paths(settings: &mut Settings, document: &Document<'_>, folder: Option<&Path>) {
    let Some(folder) = folder.filter(|folder| !folder.as_os_str().is_empty()) else { return };
    for (key, path) in paths(settings) {
        if matches!(document.origin(key), Origin::File(_)) {
            *path = folder.join(&*path);
        }
    }
}

/// Files that the settings name must be there and readable; the state file must be one that can be written.
pub(super) fn check_files(settings: &mut Settings, document: &mut Document<'_>) {
    for (key, path) in paths(settings) {
        let fault = match key {
            STATE_FILE => unusable_state_file(path),
            _ => fs::File::open(&*path).err().map(|why| format!("{} cannot be read: {}", path.display(), reason(&why))),
        };
        if let Some(fault) = fault {
            document.refuse(key, fault);
        }
    }
}

/// Why the state file could not be read and replaced.
fn unusable_state_file(path: &Path) -> Option<String> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Some(format!("{shown} is a directory: name a file in it")),
        Ok(_) => {
            if let Err(why) = fs::File::open(path) {
                return Some(format!("{shown} cannot be read: {}", reason(&why)));
            }
        }
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => return Some(format!("{shown} cannot be used: {}", reason(&why))),
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named = folder.display();
    match fs::metadata(folder) {
        Ok(found) if !found.is_dir() => Some(format!("{shown} cannot be written: {named} is not a directory")),
        Ok(_) => access(folder, AccessFlags::W_OK | AccessFlags::X_OK)
            .err()
            .map(|why| format!("{shown} cannot be written: the directory {named} is not writable ({})", why.desc())),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            Some(format!("{shown} cannot be written: there is no directory {named}"))
        }
        Err(why) => Some(format!("{shown} cannot be written: {}", reason(&why))),
    }
}

/// An error of the file system, in words.
pub(super) fn reason(why: &io::Error) -> String {
    match why.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "no permission".into(),
        _ => why.to_string(),
    }
}
