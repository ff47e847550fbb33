//! `routecause completions SHELL` and `routecause man`: for packagers.

use std::fs;
use std::path::Path;

use clap_complete::Shell;

use super::{exit, print};

/// Prints what a shell needs to complete our commands.
pub(super) fn completions(shell: Shell, mut command: clap::Command) -> u8 {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "routecause", &mut text);
    print(&String::from_utf8_lossy(&text));
    0
}

/// Prints the manual's page, or writes one for each command into a folder.
pub(super) fn man(folder: Option<&Path>, command: clap::Command) -> u8 {
    let written = if let Some(folder) = folder {
        fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(command, folder))
    } else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command).render(&mut page);
        rendered.map(|()| print(&String::from_utf8_lossy(&page)))
    };
    match written {
        Ok(()) => 0,
        Err(error) => {
            say!("error: write the manual: {error}");
            exit::FAILED
        }
    }
}
