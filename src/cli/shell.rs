//! What a package ships beside the program: completions of the shell, and the manual. Both are made
//! of the parser's own definitions.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Exit, Failure, output};

pub(super) fn completions(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pgreeve", &mut script);
    output::bytes(&script);
    Exit::Green
}

/// Prints `pgreeve(1)`, or writes it and a page for each verb into a directory.
pub(super) fn man(dir: Option<&Path>) -> Result<Exit, Failure> {
    let failed = |what: String| {
        move |error: std::io::Error| {
            Failure::new(Exit::Failed, format!("{what}: {error}"))
                .with_remedy("name a directory that exists and may be written to")
        }
    };
    if let Some(dir) = dir {
        clap_mangen::generate_to(Cli::command(), dir)
            .map_err(failed(format!("write the manual into {}", dir.display())))?;
        return Ok(Exit::Green);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut page)
        .map_err(failed("write the manual".to_owned()))?;
    output::bytes(&page);
    Ok(Exit::Green)
}
