//! `routecause schema`

use clap::{Args, ValueEnum};
use schemars::generate::SchemaSettings;

use super::{exit, print};
use crate::config;
use crate::record::Record;

#[derive(Debug, Args)]
pub(in crate::cli) struct SchemaArgs {
    /// Of what.
    pub(in crate::cli) of: SchemaOf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum SchemaOf {
    /// The policy file.
    Policy,
    /// The record of a request.
    Record,
}

pub(super) fn run(of: SchemaOf) -> u8 {
    let schema = match of {
        SchemaOf::Policy => Ok(config::schema()),
        SchemaOf::Record => serde_json::to_value(record()),
    };
    match schema.and_then(|schema| serde_json::to_string_pretty(&schema)) {
        Ok(text) => {
            print(&(text + "\n"));
            0
        }
        Err(error) => {
            say!("error: {error}");
            exit::FAILED
        }
    }
}

/// As records are written: what is left out where there is nothing to say is not required.
fn record() -> schemars::Schema {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Record>()
}
