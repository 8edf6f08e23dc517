//! Rules between keys: fallbacks, prices, budgets.

use super::{faults, only, settings};

#[test]
fn fallbacks_that_lead_nowhere_are_faults() {
    for (chain, place, message, help) in [
        ("to = [\"llama-3.1-8b-instant\"]", "1:1", "`fallback[0].model`: missing", "such as model = \"openai/gpt-oss-120b\""),
        ("model = \"m\"", "1:1", "`fallback[0].to`: missing", "such as to = [\"openai/gpt-oss-20b\"]"),
        ("model = \"m\"\nto = []", "3:6", "`fallback[0].to`: the list is empty", ""),
        ("model = \"m\"\nto = [\"m\"]", "3:7", "`fallback[0].to[0]`: a model cannot fall back to itself", ""),
        ("model = \"m\"\nto = [\"qwen/qwen3-32b\", \"qwen/qwen3-32b\"]", "3:25", "`fallback[0].to[1]`: listed twice", ""),
        (
            "model = \"m\"\nto = [\"openai/gpt-oss20b\"]",
            "3:7",
            "`fallback[0].to[0]`: \"openai/gpt-oss20b\" is not a known model",
            "did you mean \"openai/gpt-oss-20b\"?",
        ),
        (
            "model = \"m\"\nto = [\"new\"]",
            "3:7",
            "`fallback[0].to[0]`: \"new\" is not a known model",
            "if Groq has it, give it a table: [limits.model.\"new\"]",
        ),
        (
            "model = \"m\"\nto = [\"qwen/qwen3-32b\"]\nwhen = [\"daily\"]",
            "4:9",
            "`fallback[0].when[0]`: expected \"daily_limit\", \"too_large\", \"decommissioned\", \"unavailable\" or \"wait\", found \"daily\"",
            "",
        ),
        (
            "model = \"m\"\nto = [\"qwen/qwen3-32b\"]\n[[fallback]]\nmodel = \"m\"\nto = [\"qwen/qwen3-32b\"]\nwhen = [\"too_large\"]",
            "7:9",
            "`fallback[1].when[0]`: \"m\" already falls back for too_large",
            "the first [[fallback]] counts",
        ),
    ] {
        let expected = (place.to_owned(), message.to_owned(), help.to_owned());
        assert_eq!(only(&format!("[[fallback]]\n{chain}\n")), expected, "{chain}");
    }
    let chain = "[[fallback]]\nmodel = \"m\"\nto = [\"new\"]\n[limits.model.new]\nrequests_per_minute = 1\n";
    assert_eq!(settings(chain).fallback[0].when, crate::config::FallbackReason::DEFAULT);
}

#[test]
fn a_price_is_whole() {
    const TOKENS: &str = "openai/gpt-oss-20b";
    const AUDIO: &str = "whisper-large-v3";
    for (model, keys, missing) in [
        (TOKENS, "", "`input` and `output`"),
        (TOKENS, "input = 0.1\n", "`output`"),
        (TOKENS, "output = 0.1\n", "`input`"),
        ("unknown", "", "`input` and `output`"),
        ("unknown", "cached_input = 0.1\naudio_hour = 1\n", "`input` and `output`"),
        (TOKENS, "audio_hour = 1\n", "`input` and `output`"),
        (AUDIO, "", "`audio_hour`"),
        (AUDIO, "input = 1\noutput = 1\n", "`audio_hour`"),
        (AUDIO, "input = 1\naudio_hour = 1\n", "`output`"),
        ("unknown", "output = 1\n", "`input`"),
    ] {
        let (place, found, help) = only(&format!("[price.\"{model}\"]\n{keys}"));
        let message = format!("`price.{model}`: without {missing}, part of what \"{model}\" takes would cost nothing");
        assert_eq!((place.as_str(), found, help.is_empty()), ("1:1", message, false), "{model}: {keys}");
    }
    for (model, keys) in [
        (TOKENS, "input = 0.1\noutput = 0.0\n"),
        (AUDIO, "audio_hour = 0.04\n"),
        ("unknown", "audio_hour = 1\n"),
        ("unknown", "input = 1\noutput = 1\naudio_hour = 1\n"),
    ] {
        settings(&format!("[price.\"{model}\"]\n{keys}"));
    }
}

#[test]
fn budgets_and_circular_fallbacks_are_checked() {
    for (text, place, message, help) in [
        (
            "[[app]]\nname = \"a\"\ncost_per_day = 1.5\n",
            "3:16",
            "`app[0].cost_per_day`: a budget in USD, and no price of any model",
            "add the prices of the models that it uses: [price.\"openai/gpt-oss-20b\"] input = 0.1, output = 0.5",
        ),
        (
            "[[fallback]]\nmodel = \"openai/gpt-oss-120b\"\nto = [\"openai/gpt-oss-20b\"]\n\
             [[app]]\nname = \"a\"\ncost_per_day = 1.5\n[price.\"openai/gpt-oss-120b\"]\ninput = 1\noutput = 2\n",
            "3:7",
            "`fallback[0].to[0]`: \"openai/gpt-oss-20b\" has no price, and app \"a\" has a budget in USD",
            "add [price.\"openai/gpt-oss-20b\"], or set `fallback = false` for the app",
        ),
        (
            "[[app]]\nname = \"a\"\ntokens_per_day = -5\n",
            "3:18",
            "`app[0].tokens_per_day`: expected a whole number of at least 1, found -5",
            "for example 500000, or leave the key out",
        ),
        (
            "[[app]]\nname = \"*\"\ntoken_env = \"T\"\n",
            "3:13",
            "`app[0].token_env`: \"*\" stands for apps without an entry: it has no token",
            "give the app that has this token a name of its own",
        ),
        (
            "[[app]]\nname = \"a\\nb\"\n",
            "2:8",
            "`app[0].name`: expected a name of 1 to 128 printable bytes, found \"a\\nb\"",
            "for example \"chat\"",
        ),
        ("[[app]]\nname = \"a\"\n[[app]]\nname = \"a\"\n", "4:8", "`app[1].name`: already the name of app \"a\"", ""),
    ] {
        let expected = (place.to_owned(), message.to_owned(), help.to_owned());
        assert_eq!(only(text), expected, "{text}");
    }
    for (value, word) in [
        ("tokens_per_day = 9223372036854775808", "which does not fit 64 bits"),
        ("requests_per_day = 0", "of at least 1, found 0"),
        ("cost_per_day = -0.5", "found -0.5"),
        ("cost_per_month = 1e300", "found 1e300"),
        ("cost_per_month = nan", "cost_per_month"),
        ("cost_per_day = inf", "cost_per_day"),
        ("[price.x]\noutput = nan", "output"),
        ("requests_per_minute = -1", "found -1"),
    ] {
        let faults = faults(&format!("[[app]]\nname = \"a\"\n{value}\n[price.m]\ninput = 1\noutput = 2\n"));
        assert!(faults.ends_with("1 fault in the configuration") && faults.contains(word), "{value}: {faults}");
    }
    let quoted = settings("[[app]]\nname = 'say \"a\"'\ntokens_per_day = 9223372036854775807\n");
    assert_eq!(quoted.app[0].budgets()[0].limit, i64::MAX as u64);
    let long = format!("[[app]]\nname = \"{}\"\n", "x".repeat(10_000));
    let found = "x".repeat(79);
    assert_eq!(only(&long).1, format!("`app[0].name`: expected a name of 1 to 128 printable bytes, found \"{found}"));
    let priced =
        settings("[[app]]\nname = \"a\"\ncost_per_day = 1.5\ntokens_per_day = 7\n[price.\"m\"]\ninput = 0.5\noutput = 1\n");
    let budgets: Vec<_> = priced.app[0].budgets().iter().map(|budget| (budget.key(), budget.limit)).collect();
    assert_eq!(budgets, [("tokens_per_day".to_owned(), 7), ("cost_per_day".to_owned(), 1_500_000_000)]);
    let price = priced.price_of("m").and_then(|price| price.tokens).expect("it has one");
    assert_eq!((price.input, price.cached_input, price.output), (0.5, 0.5, 1.0), "cached tokens cost as others");
    assert_eq!(priced.price_of("other"), None);

    let chain = |model: &str, to: &str| format!("[[fallback]]\nmodel = \"{model}\"\nto = [\"{to}\"]\n");
    let (a, b, c) = ("openai/gpt-oss-20b", "openai/gpt-oss-120b", "qwen/qwen3-32b");
    let circle = [chain(a, b), chain(b, c), chain(c, a)].concat();
    let faults = faults(&circle);
    assert!(faults.ends_with("3 faults in the configuration"), "{faults}");
    assert!(faults.contains("\"openai/gpt-oss-120b\" falls back to \"openai/gpt-oss-20b\" in turn"), "{faults}");
    assert_eq!(settings(&[chain(a, b), chain(b, c)].concat()).fallback.len(), 2, "a chain that ends is none");
}
