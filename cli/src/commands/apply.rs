//! `meshwork apply -f PATH`: checks resources against everything else, stores them in the config service as one change,
//! and waits, if told to, until every proxy does as they say.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bytes::Bytes;
use meshwork_api::apply::{Files, Reached, Stored};
use meshwork_api::{ApplyClient, Client, ClientError};
use meshwork_base::Tick;
use meshwork_control_plane::folder::{FileChange, Folder};
use meshwork_process::parse_duration;
use serde_json::Value;

use super::{Outcome, block_on};
use crate::output::{self, Format};
use crate::server::ServerArgs;

/// Check resources and put them into effect
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    resources: ResourceArgs,
    #[command(flatten)]
    why: WhyArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Which resources.
#[derive(clap::Args, Debug)]
pub(crate) struct ResourceArgs {
    /// A folder or file of resources, or - for standard input; may be given several times
    #[arg(short, long = "filename", value_name = "PATH", required = true)]
    filename: Vec<PathBuf>,
}

/// What the history says of a change.
#[derive(clap::Args, Debug)]
pub(crate) struct WhyArgs {
    /// Why, for the history
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    pub(super) message: String,
    /// Who, for the history
    #[arg(long, value_name = "NAME", env = "USER")]
    pub(super) author: Option<String>,
}

/// Whether to wait for the effect.
#[derive(clap::Args, Debug)]
pub(crate) struct WaitArgs {
    /// Return when the change is in effect on all workers of all proxies, also of those that are cut off from the control plane
    #[arg(long)]
    wait: bool,
    /// How long to wait for that, as 30s or 2m; then those in which it is not in effect are named, and the exit code is 1
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    timeout: String,
}

fn time(text: &str) -> Result<String, String> {
    meshwork_process::parse_duration(text).map(|_| text.to_owned())
}

/// Resources that cannot be sent.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("{0}")]
    Unreadable(String),
    #[error("{0} is not UTF-8 text; save it as UTF-8")]
    NotText(String),
    #[error("there is no *.yaml, *.yml or *.json in {0}; name a folder or file of resources")]
    Nothing(String),
}

/// What a proxy would not do.
#[derive(Debug, thiserror::Error)]
#[error("{0} of the documents is refused by a proxy; the previous version stays in effect there")]
struct RefusedByProxy(usize);

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let files = arguments.resources.read()?;
    let client = ApplyClient(arguments.server.client()?);
    let files = Files { files, message: arguments.why.message.clone(), author: arguments.why.author.clone() };
    block_on(async {
        let stored = client.apply(&files).await;
        finish(&client, stored, &arguments.wait, arguments.output).await
    })?
}

/// Prints what was stored, and waits for its effect.
pub(super) async fn finish(
    client: &ApplyClient,
    stored: Result<Stored, ClientError>,
    wait: &WaitArgs,
    format: Format,
) -> Outcome {
    let stored = stored.inspect_err(findings)?;
    stored.warnings.iter().for_each(|warning| output::note(&finding(warning)));
    match format {
        Format::Table => {
            let rows = stored.versions.iter().map(|version| {
                let name = version.name.clone();
                vec![version.kind.clone(), version.namespace.clone(), name, version.revision.to_string()]
            });
            output::table(&["KIND", "NAMESPACE", "NAME", "REVISION"], rows)?;
        }
        format => output::value(format, &stored)?,
    }
    if wait.wait {
        let now = client.reached(stored.revision).await?;
        awaited(&now, &wait.timeout).iter().for_each(|note| output::note(note));
        // What is no time the server refuses at once.
        let time = parse_duration(&wait.timeout).unwrap_or_default();
        let waits = ApplyClient(client.0.that_waits(time));
        let reached = waits.effective(stored.revision, &wait.timeout).await?;
        refusals(&client.0, &stored).await?;
        if format == Format::Table {
            output::print(&in_effect(stored.revision, &reached))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Who is not connected when waiting begins. Of some of them nobody may ever hear again: whoever runs this knows better than the
/// registry whether to wait for those.
fn awaited(now: &Reached, timeout: &str) -> Option<String> {
    let absent = now.not_connected.join(", ");
    (!absent.is_empty()).then(|| {
        format!(
            "waiting up to {timeout} for proxies that are not connected: {absent}; of one that is gone for good tell the registry (meshwork explain MW4105)"
        )
    })
}

/// Where it is: "0 of 0 proxies" is no success of the kind that was waited for, and is to be seen.
fn in_effect(revision: u64, reached: &Reached) -> String {
    let all = reached.proxies.map_or_else(|| "all".to_owned(), |count| format!("{count} of {count}"));
    format!("revision {revision} is in effect on {all} proxies\n")
}

/// A proxy that refuses a document has the change in effect as far as it goes: that is not what was wanted.
async fn refusals(client: &Client, stored: &Stored) -> Result<(), Box<dyn Error>> {
    let found: Vec<Value> = client.json(http::Method::GET, "/v1/diagnostics", &[], Bytes::new()).await?;
    let ours = |found: &&Value| {
        let is_of = |file: &str| {
            stored.versions.iter().any(|version| {
                let (namespace, kind, name) = (&version.namespace, &version.kind, &version.name);
                file == format!("config:{namespace}/{kind}/{name}@{}", version.revision)
            })
        };
        found["severity"] == "error" && found["file"].as_str().is_some_and(is_of)
    };
    let refused: Vec<&Value> = found.iter().filter(ours).collect();
    refused.iter().for_each(|found| output::note(&finding(found)));
    if refused.is_empty() { Ok(()) } else { Err(RefusedByProxy(refused.len()).into()) }
}

/// Prints what is wrong with documents that were refused.
pub(super) fn findings(error: &ClientError) {
    let ClientError::Refused { problem, .. } = error else { return };
    let found = problem.more.get("diagnostics").and_then(Value::as_array);
    found.into_iter().flatten().for_each(|found| output::note(&finding(found)));
}

/// A finding as `check` prints it to a pipe.
fn finding(found: &Value) -> String {
    let text = |name: &str| found[name].as_str().unwrap_or_default();
    let place = format!("{}:{}:{}", text("file"), found["line"], found["column"]);
    let help = found["help"].as_str().map(|help| format!("\n  help: {help}")).unwrap_or_default();
    format!("{} {place}: {}{help}", text("code"), text("message"))
}

impl ResourceArgs {
    /// The texts of all files, by name.
    pub(super) fn read(&self) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
        read(&self.filename)
    }
}

/// The texts of all files of these folders and files, by name.
pub(super) fn read(paths: &[PathBuf]) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let mut files = BTreeMap::new();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text)?;
            files.insert("-".to_owned(), text);
            continue;
        }
        let found = Folder::open_by_path(path)?.scan(Tick::ZERO).files;
        if found.is_empty() {
            return Err(FileError::Nothing(path.display().to_string()).into());
        }
        for (name, change) in found {
            let text = match change {
                FileChange::Content(bytes) => {
                    String::from_utf8(bytes).map_err(|_| FileError::NotText(name.to_string()))?
                }
                FileChange::Unreadable(why) => return Err(FileError::Unreadable(why).into()),
                // A first look knows nothing that could be gone.
                FileChange::Gone => continue,
            };
            files.insert(name.to_string(), text);
        }
    }
    Ok(files)
}
