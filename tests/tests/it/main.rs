//! The black-box tests, in one binary.

mod commands;
mod constraints;
mod creates;
mod demo;
mod expiry;
mod faults;
mod ids;
mod kit_build;
mod kit_databases;
mod kit_proxy;
mod kit_standby;
mod migrations;
mod races;
mod reads;
mod redaction;
mod replica;
mod statements;
mod topology;
mod transitions;
