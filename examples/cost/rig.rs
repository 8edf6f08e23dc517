//! The table's cells from an external rig: a directory with a script `cost.sh NAME --profiles … -- CMD...` that measures the
//! command and prints a Markdown table.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

use super::table::{Cell, Cells, Options, Proxy};

/// Runs the rig for the shield, without and with the access log. The rig's tables are copied to standard error.
pub(crate) fn cells(rig: &Path, program: &Path, options: &Options) -> io::Result<Cells> {
    let script = rig.join("cost.sh");
    if !script.is_file() {
        return Err(io::Error::other(format!("{} does not exist; --rig is optional", script.display())));
    }
    let mut cells = Cells::default();
    for (level, proxy, profiles) in [("warn", Proxy::Shield, None), ("info", Proxy::Logging, Some("1k@64"))] {
        let mut command = Command::new(&script);
        command.args(["shield", "--reps", &options.reps.to_string(), "--secs", &options.seconds.to_string()]);
        command.args(profiles.iter().flat_map(|profiles| ["--profiles", profiles]));
        command.args(["--", "bash", "-c", "exec \"$0\" serve --listen $RIG_LISTEN --admin 127.0.0.1:0 --upstream $RIG_UPSTREAM"]);
        command.arg(program).env("GROQ_SHIELD_SERVER_THREADS", "1").env("GROQ_SHIELD_LOG_LEVEL", level);
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        let table = String::from_utf8_lossy(&output.stdout);
        eprintln!("{table}");
        if !output.status.success() {
            return Err(io::Error::other(format!("{}: {}", script.display(), output.status)));
        }
        read(&table, proxy, &mut cells);
    }
    Ok(cells)
}

/// Adds the rows of a table: `| profile | proxy | req/s [min..max] | … | CPU us/req | p50 ms | p99 ms | … | failed |`.
fn read(table: &str, shield: Proxy, cells: &mut Cells) {
    for line in table.lines() {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, profile, name, rate, _, _, cpu, p50, p99, _, failed, _] = columns[..] else { continue };
        let proxy = match name {
            "shield" => shield,
            // The run with the access log has its own measurement of bare hyper, to which it is compared.
            "pure_hyper" if shield == Proxy::Logging => Proxy::BareWithLogging,
            "pure_hyper" => Proxy::Bare,
            "nginx" if shield == Proxy::Shield => Proxy::Nginx,
            _ => continue,
        };
        let number = |text: &str| text.split(' ').next().and_then(|first| first.replace(',', "").parse().ok());
        if let (Some(rate), Some(cpu), Some(p50), Some(p99)) = (number(rate), number(cpu), number(p50), number(p99)) {
            let failed = failed.parse().unwrap_or(0);
            cells.add(profile, proxy, Cell { rate, cpu, p50, p99, failed });
        }
    }
}
