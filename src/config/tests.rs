use super::{Class, Faults, Plan, Settings, document::Override, example, source::read};

mod each_fault;
mod rules;

/// Every fault of a text, as an operator reads it.
fn faults(text: &str) -> String {
    let (_, document) = read(text, &[]);
    Faults { name: "f.toml".into(), text: text.into(), faults: document.into_faults() }.to_string()
}

/// Line, column, message and help of the only fault.
fn only(text: &str) -> (String, String, String) {
    let all = faults(text);
    assert!(all.ends_with("\n1 fault in the configuration"), "{all}");
    let part = |mark: &str| all.lines().find_map(|line| line.trim_start().strip_prefix(mark)).unwrap_or_default().to_owned();
    (part("--> f.toml:"), part("error: "), part("= help: "))
}

/// The example file with every key set: defaults and examples.
pub(super) fn every_key() -> String {
    let file = example::file();
    let lines = file.lines().map(|line| line.strip_prefix("# for example ").unwrap_or(line));
    let lines = lines.map(|line| line.strip_prefix('#').filter(|key| !key.starts_with([' ', ':'])).unwrap_or(line));
    lines.filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

fn settings(text: &str) -> Settings {
    let (settings, document) = read(text, &[]);
    assert_eq!(document.into_faults(), [], "{text}");
    settings
}

#[test]
fn a_fault_shows_its_line_with_a_caret() {
    assert_eq!(
        faults("[server]\n\tlisen = \"127.0.0.1:8787\" # é\n"),
        "\
error: `server.lisen`: unknown key
 --> f.toml:2:2
  |
2 |     lisen = \"127.0.0.1:8787\" # é
  |     ^^^^^
  |
  = help: did you mean `listen`?

1 fault in the configuration"
    );
}

/// Found by the fuzz target `prices`: a price that is no number was taken, and the bill with it was none.
#[test]
fn no_number_is_nan_or_infinite() {
    for key in [
        "[limits]\nheadroom",
        "[retry]\nbudget",
        "[[app]]\nname = \"a\"\nweight",
        "[price.m]\ninput = 1.0\noutput = 2.0\n[[app]]\nname = \"a\"\ncost_per_day",
        "[price.m]\ninput = 1.0\noutput = 2.0\n[[app]]\nname = \"a\"\ncost_per_month",
        "[price.m]\ninput",
        "[price.m]\ncached_input",
        "[price.m]\noutput",
        "[price.m]\naudio_hour",
    ] {
        for value in ["nan", "-nan", "inf", "-inf"] {
            let (_, message, _) = only(&format!("{key} = {value}\n"));
            let name = key.lines().last().expect("a line");
            assert!(message.contains(&format!(".{name}`: expected a number ")), "{key} = {value}: {message}");
        }
    }
}

#[test]
fn all_faults_come_in_one_go_and_in_the_order_of_the_file() {
    let text = "[server]\nlisen = 1\nthreads = true\n[queue]\nmax_wait = \"5\"\n[retry]\nattempts = 0\n[[app]]\nname = \"\"\n";
    let all = faults(text);
    let places: Vec<_> = all.lines().filter_map(|line| line.trim_start().strip_prefix("--> f.toml:")).collect();
    assert_eq!(places, ["2:1", "3:11", "5:12", "7:12", "9:8"], "{all}");
}

/// The second one was lost with the first.
#[test]
fn every_bad_item_of_a_list_is_a_fault() {
    let all = faults("[[organization]]\nname = \"o\"\napi_key_sha256 = [\"a\", \"b\"]\n");
    assert!(
        all.contains("f.toml:3:19") && all.contains("f.toml:3:24") && all.ends_with("\n2 faults in the configuration"),
        "{all}"
    );
}

/// Where a text that is not TOML goes on can only be guessed: faults after an open bracket were consequences of it, and so are those
/// of variables whose other half is in the file.
#[test]
fn a_file_that_is_not_toml_has_one_fault() {
    for (text, place, message, help) in [
        (
            "[retry]\nattempts = 0\n[[organization]]\nname = \"o\"\napi_key_env = [\"A\",\n\n[log]\nlevel = \"info\"\n",
            "8:1",
            "missing comma between array elements, expected `,`",
            "separate items with commas, and close every bracket",
        ),
        (
            "[[fallback]]\nmodel = \"a\"\nto = [\"qwen/qwen3-32b\",\n",
            "3:24",
            "unclosed array, expected `]`",
            "separate items with commas, and close every bracket",
        ),
        ("[server]\nlisen = 1\nthreads = = 2\nmax_body = 5s\n", "3:11", "extra `=`, expected nothing", ""),
    ] {
        assert_eq!(only(text), (place.to_owned(), message.to_owned(), help.to_owned()), "{text}");
    }
    let kind = [Override { name: "KIND".into(), path: "store.kind".into(), text: "redis".into() }];
    let (_, document) = read("[store]\nurl = redis://h\n", &kind);
    assert_eq!(document.into_faults().len(), 1);
}

/// An index was the one among the items that are right.
#[test]
fn an_index_is_that_of_the_file() {
    let all = faults(
        "[[organization]]\nname = \"o\"\napi_key_env = [\"$A\", \"B\"]\n[[organization]]\nname = \"p\"\napi_key_env = [\"C\", \"C\"]\n",
    );
    assert!(
        all.contains("`organization[0].api_key_env[0]`: expected") && all.contains("`organization[1].api_key_env[1]`"),
        "{all}"
    );
    assert!(all.ends_with("\n2 faults in the configuration"), "{all}");
    let chains = "[[fallback]]\nmodel = \"m\"\nto = [1, \"unknown\"]\n";
    assert_eq!(only(chains).1, "`fallback[0].to[0]`: expected text, found 1");
}

#[test]
fn features_that_are_not_built_in_are_faults_with_a_remedy() {
    let all = faults("[log]\notlp_endpoint = \"http://localhost:4318\"\n");
    assert_eq!(all.contains("built without OpenTelemetry"), !cfg!(feature = "otlp"), "{all}");
    assert_eq!(all.contains("--features otlp"), !cfg!(feature = "otlp"), "{all}");
}

#[test]
fn passwords_are_in_no_fault() {
    let all = faults("[store]\nurl = \"reddis://user:hunter2@host\"\n");
    assert!(all.contains("expected a redis or rediss URL, found \"reddis://user:***@host\""), "{all}");
    assert!(all.contains("2 | url = \"reddis://user:*******@host\""), "{all}");
    let all = faults("[upstream]\napi_key_env = \"gsk_hunter2\" # also sk-hunter2\n");
    assert!(all.contains("2 | api_key_env = \"gsk_*******\" # also sk-*******"), "{all}");
}

#[test]
fn every_table_reads() {
    let settings = settings(
        "[server]\nthreads = 2\nmax_body = \"1MiB\"\ntls.cert = \"c\"\ntls.key = \"k\"\n\
         [limits]\nplan = \"developer\"\nheadroom = 0.1\n[limits.default]\ntokens_per_day = 5\n\
         [limits.model.\"openai/gpt-oss-20b\"]\nrequests_per_minute = 30\n\
         [[organization]]\nname = \"o\"\napi_key_env = [\"A\", \"B\"]\n\
         [queue]\nmax_wait = \"2m\"\nstream_keepalive = \"15s\"\n[[app]]\nname = \"a\"\nclass = \"batch\"\nweight = 2\n",
    );
    assert_eq!(settings.server.threads, Some(2));
    assert_eq!(settings.server.tls.as_ref().map(|tls| tls.key.display().to_string()), Some("k".into()));
    assert_eq!(settings.server.max_body, 1 << 20);
    assert_eq!((settings.limits.plan, settings.limits.headroom), (Plan::Developer, 0.1));
    assert_eq!(settings.limits.default.tokens_per_day, Some(5));
    assert_eq!(settings.limits.model["openai/gpt-oss-20b"].requests_per_minute, Some(30));
    assert_eq!(settings.organization[0].api_key_env, ["A", "B"]);
    assert_eq!(settings.queue.max_wait.as_secs(), 120);
    assert_eq!(settings.queue.stream_keepalive.map(|every| every.as_secs()), Some(15));
    assert_eq!((settings.app[0].weight, settings.app[0].class), (2.0, Class::Batch));
}

#[test]
fn garbage_never_panics() {
    for text in [
        "\0",
        "[",
        "[[",
        "[a",
        "=",
        "a.b.c",
        "\u{feff}[server]\n",
        "[server]\r\nlisen = 1\r\n",
        "é = é",
        "[limits]\nmodel = 3\n",
        "[limits.model]\nx = 3\n",
        "app = [1]",
        "a = 1e999",
        "a = 99999999999999999999999999999999999999999999",
    ] {
        let shown = faults(text);
        assert!(shown.contains("configuration"), "{text:?}");
    }
}

#[test]
fn a_list_is_no_table() {
    for text in ["admin = [\"127.0.0.1:99\"]\n", "[[admin]]\nlisten = \"127.0.0.1:99\"\n"] {
        assert!(faults(text).contains("`admin`: expected a table, found a list"), "{text}");
    }
}

/// What people write who have not read the documentation, and what they are told.
#[test]
fn mistakes_of_a_newcomer() {
    let mistakes = [
        ("a time without its unit", "[queue]\nmax_wait = 50\n"),
        ("a time as on a clock", "[queue]\nmax_wait = \"0:50\"\n"),
        ("a size without its unit", "[server]\nmax_body = 1048576\n"),
        ("a negative number", "[retry]\nattempts = -1\n"),
        ("a percentage", "[limits]\nheadroom = 20\n"),
        ("a key in the wrong table", "[server]\nbase_url = \"https://api.groq.com\"\n"),
        ("a key outside of every table", "listen = \"127.0.0.1:8787\"\n"),
        ("a list of tables in the plural", "[[apps]]\nname = \"chat\"\n"),
        ("one table where many stand", "[app]\nname = \"chat\"\n"),
        ("a table twice", "[queue]\nmax_wait = \"5s\"\n\n[queue]\nmax_waiting = 5\n"),
        ("a missing quote", "[server]\nlisten = \"127.0.0.1:8787\n[queue]\nmax_waiting = 0\n"),
        ("no quotes at all", "[upstream]\nbase_url = https://api.groq.com\n"),
        ("a colon", "[queue]\nmax_wait: \"5s\"\n"),
        ("names of other programs", "[server]\nlisten_addr = \":8787\"\n[retry]\nmax_attempts = 3\n"),
        ("abbreviations of limits", "[limits.default]\nrpm = 30\ntpm = 8000\n"),
        ("a key of Groq's", "[upstream]\napi_key = \"gsk_secret\"\n"),
        ("a key in place of a variable", "[upstream]\napi_key_env = \"gsk_secret\"\n"),
        ("a model straight under limits", "[limits.\"openai/gpt-oss-20b\"]\nrequests_per_minute = 30\n"),
        ("limits of no model", "[limits]\nrequests_per_minute = 30\n"),
        ("an unknown key of a model", "[limits.model.\"openai/gpt-oss-20b\"]\ntokens_per_min = 8000\n"),
        ("the spelling of before", "[[organisation]]\nname = \"acme\"\napi_key_env = [\"GROQ_API_KEY\"]\n"),
        ("tabs", "[queue]\n\tmax_wait = 5\n"),
        ("a byte order mark and CRLF", "\u{feff}[queue]\r\nmax_wait = 5\r\nmax_waiting = 0\r\n"),
        ("a word for a flag", "[server]\nreuse_port = \"yes\"\n"),
        ("half of TLS", "[server.tls]\ncert = \"cert.pem\"\n"),
    ];
    let told: Vec<_> = mistakes.iter().map(|(mistake, text)| format!("## {mistake}\n\n{}\n", faults(text))).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn what_is_harmless_is_no_fault() {
    for text in [
        "",
        "\n\n",
        "# nothing\n",
        "\u{feff}",
        "\u{feff}[queue]\r\nmax_wait = \"5s\"\r\n",
        "[queue]\n\tmax_wait\t=\t\"5s\"\n",
        "[queue]\nmax_wait = \"50 seconds\"\n",
    ] {
        settings(text);
    }
}

#[test]
fn sizes_have_a_unit_in_any_case() {
    for (text, bytes, shown) in [
        ("1b", 1, "1B"),
        ("1kB", 1000, "1000B"),
        ("64KiB", 64 << 10, "64KiB"),
        ("100 mb", 100_000_000, "100000000B"),
        ("1.5gib", 3 << 29, "1536MiB"),
        ("4GiB", 4 << 30, "4GiB"),
    ] {
        let read = settings(&format!("[server]\nmax_body = \"{text}\"\n"));
        assert_eq!(read.server.max_body, bytes, "{text}");
        let effective = serde_json::to_value(&read.server).expect("JSON");
        assert_eq!(effective["max_body"], shown, "{text}");
        assert_eq!(settings(&format!("[server]\nmax_body = \"{shown}\"\n")).server.max_body, bytes, "{shown}");
    }
    for text in ["1", "1iB", "1ki", "1M", "1TB", "0.5B", "-1B", "B", "nan B", "1e3B", "KiB"] {
        assert!(faults(&format!("[server]\nmax_body = \"{text}\"\n")).contains("found \""), "{text}");
    }
}

/// Found by hand: lines were counted from the start of the text for each fault, and four megabytes took more than ten minutes.
#[test]
fn large_files_of_faults_are_read_at_once() {
    let started = tokio::time::Instant::now();
    for (line, count) in [("x+/9 Zm9v\n", "1 fault"), ("key = 1 2\n", "1 fault"), ("[[app]]\nnmae = 1\n", "101 faults")] {
        assert!(faults(&line.repeat(50_000)).ends_with(&format!("\n{count} in the configuration")), "{line}");
    }
    let taken = started.elapsed();
    assert!(taken < std::time::Duration::from_secs(60), "{taken:?}");
}

#[test]
fn the_search_for_faults_ends() {
    let text: String = (0..200).map(|n| format!("key_{n} = {n}\n")).collect();
    let all = faults(&text);
    assert!(all.ends_with("error: there are more faults than these\n\n101 faults in the configuration"), "{all}");
}

proptest::proptest! {
    /// Whatever is cut out of a file with every key, or put into it, is read or refused.
    #[test]
    fn damaged_files_never_panic(at in 0..4000_usize, length in 0..40_usize, insert in "[a-z0-9=.\\[\\]{}\"'# \n\u{e9}-]{0,12}") {
        let every_key = every_key();
        let at = at.min(every_key.len());
        let end = (at + length).min(every_key.len());
        let text = format!("{}{insert}{}", &every_key[..at], &every_key[end..]);
        assert!(faults(&text).contains(" in the configuration"));
    }
}
