//! Load for profile-guided optimization: the table's loads, with and without the access log, and a queue.

use std::{io, path::Path, time::Duration};

use super::{
    load::{self, KEY, MODEL, always},
    memory::{BRISK, QueueingShield},
    process::{LOAD_CORE, PROXY_CORE, Running, free_address, pin, shield, this_program},
    table::PROFILES,
};

/// Duration of each load.
const EACH: Duration = Duration::from_secs(3);
/// Number of connections for the model [`BRISK`], enough that requests have to wait for its limit.
const TOO_MANY: usize = 32;

/// Runs a binary that was built with `-Cprofile-generate`, which writes its profile when it exits on SIGTERM.
pub(crate) async fn run(program: &Path) -> io::Result<()> {
    let _priority = pin()?;
    let stub = Running::start_role(LOAD_CORE, |listen| this_program(&["stub", &listen.to_string()]))?;
    for level in ["warn", "info"] {
        let (listen, admin) = (free_address()?, free_address()?);
        let command = shield(program, listen, admin, stub.address, &[("GROQ_SHIELD_LOG_LEVEL", level)]);
        let running = Running::start(PROXY_CORE, &command, listen)?;
        for (profile, size, stream, connections) in PROFILES {
            eprintln!("{profile}, log level {level}");
            let connections = load::connect(listen, connections).await?;
            load::closed_loop(connections, EACH, &always(load::request(KEY, &load::call(MODEL, size, stream)))).await?;
        }
        running.end()?;
    }
    eprintln!("a queue");
    let shield = QueueingShield::start(program, stub.address)?;
    let connections = load::connect(shield.running.address, TOO_MANY).await?;
    load::closed_loop(connections, EACH, &always(load::request(KEY, &load::call(BRISK, 1027, false)))).await?;
    shield.running.end()
}
