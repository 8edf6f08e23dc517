//! The load for profile-guided optimization: the table's loads, a queue and the access log.

use std::{io, path::Path, time::Duration};

use super::{
    load::{self, KEY, MODEL, always},
    memory::{BRISK, QueueingShield},
    process::{OURS, Running, THEIRS, free, ourselves, settle, shield},
    table::PROFILES,
};

/// How long each load runs.
const EACH: Duration = Duration::from_secs(3);
/// Connections that send more than their model's limit lets through.
const TOO_MANY: usize = 32;

/// Runs a binary that was built with `-Cprofile-generate` and stops it with SIGTERM, at which it writes its profile.
pub(crate) async fn run(program: &Path) -> io::Result<()> {
    let _settled = settle()?;
    let stub = Running::start_role(OURS, |listen| ourselves(&["stub", &listen.to_string()]))?;
    for level in ["warn", "info"] {
        let (listen, admin) = (free()?, free()?);
        let command = shield(program, listen, admin, stub.address, &[("GROQ_SHIELD_LOG_LEVEL", level)]);
        let running = Running::start(THEIRS, &command, listen)?;
        for (profile, size, stream, connections) in PROFILES {
            eprintln!("{profile}, log level {level}");
            let wires = load::connect(listen, connections).await?;
            load::closed(wires, EACH, &always(load::request(KEY, &load::call(MODEL, size, stream)))).await?;
        }
        running.end()?;
    }
    eprintln!("a line");
    let shield = QueueingShield::start(program, stub.address)?;
    let wires = load::connect(shield.running.address, TOO_MANY).await?;
    load::closed(wires, EACH, &always(load::request(KEY, &load::call(BRISK, 1027, false)))).await?;
    shield.running.end()
}
