//! Instructions per request by part of the code: callgrind counts instructions by address, and `addr2line` maps each address to
//! its source files, including inlined ones.
//!
//! An instruction is attributed to the innermost function in the shield, hyper or tokio. The standard library, the allocator, the
//! header map and the JSON parser are attributed to their callers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    io::{self, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use super::{instructions, memory};

/// Part of the shield by prefix of the source file's path. The first match counts.
const SHIELD_FILES: &[(&str, &str)] = &[
    ("src/proxy/request/identity", "ours: identity of the key"),
    ("src/proxy/request/", "ours: reading the call, and the estimate of its tokens"),
    ("src/estimate", "ours: reading the call, and the estimate of its tokens"),
    ("src/groq/path", "ours: reading the call, and the estimate of its tokens"),
    ("src/proxy/body_buffer", "ours: buffering the body"),
    ("crates/groq-limiter/src", "ours: reservation and settlement"),
    ("src/proxy/breaker", "ours: breaker and retries"),
    ("src/proxy/retry", "ours: breaker and retries"),
    ("src/groq/usage", "ours: the response's usage"),
    ("src/groq/sse", "ours: the response's usage"),
    ("src/groq", "ours: the response's rate-limit headers"),
    ("src/upstream", "ours: connections to the upstream, and its request"),
    ("src/headers", "ours: headers"),
    ("src/proxy/rate_limit", "ours: the RateLimit headers"),
    ("src/proxy/relay", "ours: relay of the response"),
    ("src/server", "ours: the client's connection, its framing and deadlines"),
    ("src/telemetry", "ours: metrics"),
    ("src/", "ours: the pipeline's steps"),
    ("examples/", "the bare proxy itself"),
];

/// Dependencies with parts of their own, by prefix of the crate's directory.
const DEPENDENCIES: &[(&str, &str)] =
    &[("httparse-", "httparse"), ("hyper-", "hyper"), ("tokio-", "tokio and mio"), ("mio-", "tokio and mio")];

const NOT_FOUND: &str = "not found";
/// If a larger share of the instructions has no part, the binary lacks line information.
const MAX_NOT_FOUND: f64 = 0.3;

/// Options of `cost -- parts`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// List the shield's code file by file
    #[arg(long)]
    files: bool,
}

/// Prints the table.
pub(crate) async fn run(program: &Path, options: &Options) -> io::Result<()> {
    let _priority = super::process::pin()?;
    let (shield, bare) = instructions::both(program, &memory::standard_request()).await?;
    let shares = [(program, &shield), (&std::env::current_exe()?, &bare)]
        .map(|(program, counted)| Ok((counted.per_request, parts(program, &fs::read_to_string(&counted.profile)?, options)?)))
        .into_iter()
        .collect::<io::Result<Vec<(f64, BTreeMap<String, f64>)>>>()?;
    println!("| part | shield | share | bare hyper |\n|---|---|---|---|");
    let names: BTreeSet<&str> = shares.iter().flat_map(|(_, parts)| parts.keys().map(String::as_str)).collect();
    let of = |which: usize, name: &str| {
        let (each, parts) = &shares[which];
        each * parts.get(name).copied().unwrap_or(0.0)
    };
    let line = |name: &str, ours: f64, bare: f64| {
        println!("| {name} | {ours:.0} | {:.1} % | {bare:.0} |", 100.0 * ours / shield.per_request);
    };
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by(|a, b| of(0, b).total_cmp(&of(0, a)));
    for name in &names {
        line(name, of(0, name), of(1, name));
    }
    let ours = names.iter().filter(|name| name.starts_with("ours")).map(|name| of(0, name)).sum();
    line("**all that is ours**", ours, 0.0);
    line("**all**", shield.per_request, bare.per_request);
    Ok(())
}

/// Each part's share of all instructions, between 0 and 1.
fn parts(program: &Path, profile: &str, options: &Options) -> io::Result<BTreeMap<String, f64>> {
    let profile = Profile::read(profile, &program.to_string_lossy());
    let owners = owners(program, profile.addresses(), options)?;
    let owner = |site: &Site| site.address.and_then(|address| owners.get(&address).cloned());
    let mut callers: HashMap<u32, Vec<(&Site, f64)>> = HashMap::new();
    for (site, callee, inclusive) in &profile.calls {
        callers.entry(*callee).or_default().push((site, *inclusive));
    }
    let mut parts = BTreeMap::new();
    let mut ownerless: HashMap<u32, f64> = HashMap::new();
    for (site, cost) in &profile.costs {
        match owner(site) {
            Some(part) => *parts.entry(part).or_default() += cost,
            None => *ownerless.entry(site.function).or_default() += cost,
        }
    }
    for (function, cost) in ownerless {
        distribute(function, cost, &callers, &owner, &mut HashSet::new(), &mut parts);
    }
    let total: f64 = parts.values().sum();
    if parts.get(NOT_FOUND).is_some_and(|lost| *lost > MAX_NOT_FOUND * total) {
        let error = format!(
            "{} has no line information: `cargo build --profile symbols`, and run this with the same profile",
            program.display()
        );
        return Err(io::Error::other(error));
    }
    Ok(parts.into_iter().map(|(part, cost)| (part, cost / total)).collect())
}

/// Distributes the cost of a function without a part over its callers, in proportion to the cost of their calls. `above` has the
/// functions on the path so far, so that recursion ends.
fn distribute<'a>(
    function: u32,
    cost: f64,
    callers: &HashMap<u32, Vec<(&'a Site, f64)>>,
    owner: &dyn Fn(&Site) -> Option<String>,
    above: &mut HashSet<u32>,
    parts: &mut BTreeMap<String, f64>,
) {
    let known: &[(&Site, f64)] = callers.get(&function).map_or(&[], Vec::as_slice);
    let known: Vec<_> = known.iter().filter(|(site, _)| !above.contains(&site.function) && site.function != function).collect();
    let total: f64 = known.iter().map(|(_, inclusive)| inclusive).sum();
    if total == 0.0 || cost < 1.0 {
        *parts.entry(NOT_FOUND.to_owned()).or_default() += cost;
        return;
    }
    above.insert(function);
    for (site, inclusive) in known {
        let part_cost = cost * inclusive / total;
        match owner(site) {
            Some(part) => *parts.entry(part).or_default() += part_cost,
            None => distribute(site.function, part_cost, callers, owner, above, parts),
        }
    }
    above.remove(&function);
}

/// An instruction.
struct Site {
    function: u32,
    /// `None` in shared libraries.
    address: Option<u64>,
}

/// callgrind's output with `--dump-instr=yes`. Costs are numbers of instructions.
#[derive(Default)]
struct Profile {
    costs: Vec<(Site, f64)>,
    /// Call site, callee, cost including that of the callee's own calls.
    calls: Vec<(Site, u32, f64)>,
}

impl Profile {
    fn read(text: &str, program: &str) -> Self {
        let mut profile = Self::default();
        let (mut function, mut callee, mut is_call) = (0, 0, false);
        let (mut inside, mut programs) = (false, HashMap::<u32, bool>::new());
        let mut address = 0;
        for line in text.lines() {
            if let Some((key, value)) = line.split_once('=') {
                let (id, name) = parse_name(value);
                match key {
                    "ob" => inside = *programs.entry(id).or_insert(name == program),
                    "cob" => drop(programs.entry(id).or_insert(name == program)),
                    "fn" => function = id,
                    "cfn" => callee = id,
                    "calls" => is_call = true,
                    _ => {}
                }
                continue;
            }
            let mut columns = line.split(' ');
            let (Some(position), Some(_line), Some(Ok(cost))) = (columns.next(), columns.next(), columns.next().map(str::parse))
            else {
                continue;
            };
            let Some(position) = parse_address(address, position) else { continue };
            address = position;
            let site = Site { function, address: inside.then_some(address) };
            if std::mem::take(&mut is_call) {
                profile.calls.push((site, callee, cost));
            } else {
                profile.costs.push((site, cost));
            }
        }
        profile
    }

    fn addresses(&self) -> BTreeSet<u64> {
        let costs = self.costs.iter().map(|(site, _)| site);
        costs.chain(self.calls.iter().map(|(site, ..)| site)).filter_map(|site| site.address).collect()
    }
}

/// Parses `(3) name`, or `(3)` for a name that was given earlier.
fn parse_name(value: &str) -> (u32, &str) {
    let (id, name) = value.split_once(')').unwrap_or((value, ""));
    (id.trim_start_matches('(').parse().unwrap_or(0), name.trim())
}

/// Parses an address, which is absolute or relative to the previous one.
fn parse_address(from: u64, position: &str) -> Option<u64> {
    match position.split_at_checked(1)? {
        ("*", _) => Some(from),
        ("+", by) => Some(from + by.parse::<u64>().ok()?),
        ("-", by) => from.checked_sub(by.parse().ok()?),
        _ => u64::from_str_radix(position.strip_prefix("0x")?, 16).ok(),
    }
}

/// The part to which each address belongs, by the innermost inlined function that has one. Addresses without a part are omitted.
fn owners(program: &Path, addresses: BTreeSet<u64>, options: &Options) -> io::Result<HashMap<u64, String>> {
    let mut command = Command::new("addr2line");
    command.args(["-a", "-i", "-e"]).arg(program);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut input = child.stdin.take().expect("it is piped");
    let writer = std::thread::spawn(move || addresses.iter().try_for_each(|address| writeln!(input, "{address:#x}")));
    let response = child.wait_with_output()?;
    writer.join().map_err(|_| io::Error::other("addr2line could not be given the addresses"))??;
    let (mut owners, mut address) = (HashMap::new(), None);
    for line in String::from_utf8_lossy(&response.stdout).lines() {
        if let Some(hexadecimal) = line.strip_prefix("0x") {
            address = u64::from_str_radix(hexadecimal, 16).ok();
        } else if let (Some(address), Some(owner)) = (address, owner(line, options)) {
            owners.entry(address).or_insert(owner);
        }
    }
    Ok(owners)
}

/// The part to which a source file belongs.
fn owner(file: &str, options: &Options) -> Option<String> {
    let found = |parts: &[(&str, &str)], path: &str| {
        parts.iter().find(|(begin, _)| path.starts_with(begin)).map(|(_, part)| (*part).to_owned())
    };
    if let Some((_, path)) = file.split_once("/registry/src/") {
        return found(DEPENDENCIES, path.split_once('/')?.1);
    }
    let path = file.strip_prefix(env!("CARGO_MANIFEST_DIR"))?.trim_start_matches('/').split(':').next()?;
    // The global allocator is declared in `main.rs`; allocations are attributed to their callers.
    if path.ends_with("main.rs") {
        return None;
    }
    if options.files && path.starts_with("src/") {
        return Some(format!("ours: {path}"));
    }
    found(SHIELD_FILES, path)
}
