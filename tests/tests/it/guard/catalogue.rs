//! The catalogue of completions beside the sources: nothing completes a waitpoint that is not listed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use store::guard::CATALOGUE;

/// The methods through which waitpoints are completed.
const DOORS: [&str; 6] = [
    "complete_waitpoint",
    "apply_completion",
    "get_or_create_run_waitpoint",
    "complete_batch_if_done",
    "abort_batch",
    "complete_batch_waitpoints",
];

/// Where a waitpoint is completed, by file and item, and the routes that are named there.
type Paths = BTreeMap<(String, String), BTreeSet<String>>;

/// Those in one file.
fn paths_in(file: &str, text: &str) -> Paths {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut items: BTreeMap<String, String> = BTreeMap::new();
    let mut item = String::new();
    for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
        if let Some(name) = declared(line) {
            name.clone_into(&mut item);
        }
        let body = items.entry(item.clone()).or_default();
        *body += line;
        *body += "\n";
    }
    let mut paths = Paths::new();
    for (item, body) in items {
        let is_catalogue = (file, item.as_str()) == ("store/src/guard.rs", "CATALOGUE");
        let routes = routes_in(&body);
        if !is_catalogue && (!routes.is_empty() || goes_through_a_door(&body) || is_statement(&body)) {
            paths.insert((file.to_owned(), item), routes);
        }
    }
    paths
}

/// The function that begins in a line, or the constant of a module.
fn declared(line: &str) -> Option<&str> {
    let is_of_module = !line.starts_with(' ');
    let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub") || *word == "async");
    let name = match words.next()? {
        "fn" => words.next()?,
        "static" if is_of_module => words.next()?,
        "const" => match words.next()? {
            "fn" => words.next()?,
            name if is_of_module => name,
            _ => return None,
        },
        _ => return None,
    };
    name.split(|char: char| !char.is_alphanumeric() && char != '_').next()
}

/// Everything that is needed to name a route: one of its values, or another name for the type.
fn routes_in(body: &str) -> BTreeSet<String> {
    let word = |rest: &str| rest.split(|char: char| !char.is_alphanumeric()).next().unwrap_or_default().to_owned();
    let named = body.split("CompletionRoute::").skip(1).map(word).filter(|name| name != "ALL");
    let by_constructor = body.contains("CompleteWaitpoint::beside").then(|| "Run".to_owned());
    let renamed = body.contains("CompletionRoute as ").then(|| "another name for the routes".to_owned());
    named.chain(by_constructor).chain(renamed).collect()
}

fn goes_through_a_door(body: &str) -> bool {
    DOORS.iter().any(|door| body.contains(&format!(".{door}(")) || body.contains(&format!("::{door}")))
}

/// Whether a statement is written there that sets the status of a waitpoint.
fn is_statement(body: &str) -> bool {
    let raw = body.contains("UPDATE waitpoint") && body.contains("SET status = 'COMPLETED'");
    let built = body.contains(".value(WaitpointColumn::Status");
    let model = ["status: WaitpointStatus::Completed", "Set(WaitpointStatus::Completed"];
    raw || built || model.iter().any(|text| body.contains(text))
}

/// What the catalogue does not say of these paths, each with what to do.
fn missing(paths: &Paths) -> Vec<String> {
    let mut missing = Vec::new();
    for ((file, item), routes) in paths {
        let listed = || CATALOGUE.iter().filter(|path| path.file == file && path.item == item);
        let known: BTreeSet<String> =
            listed().filter_map(|path| path.route.map(|route| format!("{route:?}"))).collect();
        let unlisted: Vec<_> = routes.difference(&known).collect();
        if listed().next().is_none() || !unlisted.is_empty() {
            missing.push(format!(
                "{item} in {file} completes waitpoints ({routes:?}): see that it passes the guard, and list it in \
                 `store::guard::CATALOGUE`"
            ));
        }
    }
    missing
}

/// The sources of every member of the workspace but the tests, by path from its root.
fn sources() -> Result<Vec<(String, String)>> {
    fn below(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
        for entry in std::fs::read_dir(folder).with_context(|| format!("{} is no folder", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                below(&path, into)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push(path);
            }
        }
        Ok(())
    }

    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the tests are in a workspace")?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(workspace)? {
        let member = entry?.path();
        if member.join("Cargo.toml").is_file() && !member.ends_with("tests") {
            below(&member.join("src"), &mut files)?;
        }
    }
    let read = |file: PathBuf| -> Result<(String, String)> {
        let name = file.strip_prefix(workspace)?.to_str().context("the names of our files are text")?.to_owned();
        Ok((name, std::fs::read_to_string(&file)?))
    };
    files.into_iter().map(read).collect()
}

#[test]
fn nothing_completes_a_waitpoint_that_is_not_in_the_catalogue() -> Result<()> {
    let mut found = Paths::new();
    for (file, text) in sources()? {
        found.extend(paths_in(&file, &text));
    }
    let missing = missing(&found);
    assert!(missing.is_empty(), "{}", missing.join("\n"));

    assert!(!CATALOGUE.is_empty());
    for path in CATALOGUE {
        let routes = found.get(&(path.file.to_owned(), path.item.to_owned()));
        let routes = routes.with_context(|| format!("{path:?} completes nothing: take it out of the catalogue"))?;
        let names_it = path.route.is_none_or(|route| routes.contains(&format!("{route:?}")));
        assert!(names_it, "{path:?} names {routes:?}: correct the catalogue");
        assert!(path.route.is_some() || routes.is_empty(), "{path:?} names {routes:?}: correct the catalogue");
    }
    Ok(())
}

#[test]
fn every_kind_of_path_is_found_when_it_is_planted() -> Result<()> {
    let file = "store/src/waitpoints.rs";
    let text = sources()?.into_iter().find(|(name, _)| name == file).context("there are waitpoints")?.1;
    let innocent = paths_in(file, &text);
    assert_eq!(missing(&innocent), Vec::<String>::new());

    let offences = [
        "async fn planted(&self) { self.complete_waitpoint(id, input).await }",
        "pub(crate) async fn planted(store: &dyn RunStore) { store\n        .apply_completion(id, input)\n        .await }",
        "fn planted() { Waitpoints::get_or_create_run_waitpoint(store, run) }",
        "const fn planted() -> CompletionContext { CompletionContext::of(CompletionRoute::Manual) }",
        "fn planted() { let input = CompleteWaitpoint::beside(run, output); }",
        "fn planted() { use CompletionRoute as Way; }",
        "fn planted() { use CompletionRoute::*; }",
        "pub fn planted() { store.abort_batch(batch, input) }",
        "fn planted() { store.complete_batch_if_done(batch) }",
        "fn planted() { store.complete_batch_waitpoints(batch, output) }",
        "static planted: &str = \"UPDATE waitpoint\n    SET status = 'COMPLETED'\";",
        "fn planted() { statement.value(WaitpointColumn::Status, completed); }",
        "fn planted() { Waitpoint { status: WaitpointStatus::Completed, ..row } }",
    ];
    for offence in offences {
        // Before the items that are there, so that it is none of theirs.
        let (uses, rest) =
            text.split_once("\n/// The operations on waitpoints.").context("it begins with the trait")?;
        let planted = format!("{uses}\n{offence}\n\nstruct Next;\n\nfn next() {{\n}}\n{rest}");
        let missing = missing(&paths_in(file, &planted));
        assert_eq!(missing.len(), 1, "{offence}: {missing:?}");
        assert!(missing[0].starts_with("planted in"), "{offence}: {missing:?}");
    }

    let known_by_another_route = text.replace("route: CompletionRoute::Run", "route: CompletionRoute::Manual");
    assert_ne!(known_by_another_route, text, "`beside` names its route in another way");
    let missing = missing(&paths_in(file, &known_by_another_route));
    assert_eq!(missing.len(), 1, "a listed path that names another route: {missing:?}");

    let innocence = [
        "// self.complete_waitpoint(id, input)",
        "fn planted() { Effect::CompleteWaitpoint { id, beside, output } }",
        "fn planted() { let all = CompletionRoute::ALL; }",
        "fn planted() { filter(WaitpointColumn::Status.eq(WaitpointStatus::Completed)) }",
        "fn planted() { \"UPDATE batch_task_run SET status = 'COMPLETED'\" }",
        "#[cfg(test)]\nmod tests {\n    fn planted() { store.complete_waitpoint(id, input) }\n}",
    ];
    for text in innocence {
        assert_eq!(paths_in(file, &format!("\n{text}\n")), Paths::new(), "{text}");
    }
    Ok(())
}
