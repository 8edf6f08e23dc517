//! Installs tools for the tests: Python and Node packages below `target`, system packages with apt-get.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// The directory of the client scripts.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");
/// Where packages are installed.
const ROOT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/sdk");

/// A Python with the packages of `tests/sdk/requirements.txt`.
///
/// # Panics
/// If they cannot be installed: a test that cannot run has failed.
pub(crate) fn python() -> PathBuf {
    venv("venv", &Path::new(SOURCES).join("requirements.txt"))
}

/// A Python with the packages of `wanted`, in a virtual environment called `name`.
///
/// # Panics
/// If they cannot be installed.
pub(crate) fn venv(name: &str, wanted: &Path) -> PathBuf {
    let _lock = lock();
    let venv = Path::new(ROOT).join(name);
    let python = venv.join("bin/python");
    install_once(&venv, wanted, || {
        if run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).is_err() {
            install_system_packages(&["python3", "python3-venv"]);
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        }
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(wanted))
    });
    python
}

/// The directory with `clients.mjs` and its `node_modules`.
///
/// # Panics
/// If they cannot be installed.
pub(crate) fn node() -> PathBuf {
    let _lock = lock();
    let (directory, sources) = (Path::new(ROOT).join("node"), Path::new(SOURCES));
    install_once(&directory, &sources.join("package-lock.json"), || {
        fs::create_dir_all(&directory).map_err(|e| e.to_string())?;
        for file in ["package.json", "package-lock.json", ".npmrc"] {
            fs::copy(sources.join(file), directory.join(file)).map_err(|e| format!("{file}: {e}"))?;
        }
        if run(Command::new("npm").arg("--version")).is_err() {
            install_system_packages(&["nodejs", "npm"]);
        }
        run(Command::new("npm").args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(&directory))
    });
    // Node looks for modules in the script's directory.
    fs::copy(sources.join("clients.mjs"), directory.join("clients.mjs")).expect("the script can be copied");
    directory
}

/// A lock, because concurrent test processes may install the same packages.
fn lock() -> File {
    fs::create_dir_all(ROOT).expect("target can be written");
    let file = File::create(Path::new(ROOT).join("lock")).expect("target can be written");
    file.lock().expect("a file can be locked");
    file
}

/// Runs `install` unless the packages of `list` are already installed in `directory`.
fn install_once(directory: &Path, list: &Path, install: impl FnOnce() -> Result<(), String>) {
    let wanted = fs::read(list).expect("the list of packages is there");
    let stamp = directory.join("installed");
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return;
    }
    if let Err(why) = install() {
        panic!("cannot install {}: {why}", list.display());
    }
    fs::write(stamp, wanted).expect("target can be written");
}

/// Installs missing system packages with apt-get, which needs root privileges.
fn install_system_packages(packages: &[&str]) {
    let apt = |arguments: &[&str]| run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments));
    let install = [&["install", "-qy", "--no-install-recommends"], packages].concat();
    if let Err(why) = apt(&["update", "-q"]).and_then(|()| apt(&install)) {
        panic!("these tests need {}; install them ({why})", packages.join(", "));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{:?}: {}\n{out}{err}", command.get_program(), output.status))
}
