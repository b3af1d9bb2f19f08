//! The rest of `store/src/generated/`: the compile-time proof that both crates' rows are the same, how rows are read, and
//! the versions of the schemas all this was generated from.

use std::fmt::Write as _;

use anyhow::{Context, ensure};
use heck::ToUpperCamelCase;
use migration::Schema;
use sea_orm_codegen::Column as CodegenColumn;
use sea_schema::sea_query::{Alias, ColumnDef};

use super::{
    catalogue::{Catalogue, Column},
    parity::RUN_TABLES,
};

/// Writes `parity.rs`. The catalogues are known to agree (`parity::compare`), so one of them names fields
/// and labels for both; that the two crates agree as well is what the compiler is asked.
pub(crate) fn render_parity(control_plane: &Catalogue, run_ops: &Catalogue) -> anyhow::Result<String> {
    let mut enums = String::new();
    for (name, labels) in &control_plane.enums {
        if run_ops.enums.contains_key(name) {
            enums.push_str(&enum_twin(name, labels)?);
        }
    }
    let mut rows = String::new();
    for table in RUN_TABLES {
        let columns = &control_plane.tables.get(table).with_context(|| format!("no table {table}"))?.columns;
        rows.push_str(&row_twin(table, columns, control_plane)?);
    }
    Ok(format!(
        "//! Compile-time proof that the rows of the shared tables are the same in both entity crates, field by\n\
         //! field and label by label: a difference does not compile. Nothing here is ever called.\n\n\
         use entities_control as control_plane;\n\
         use entities_runops as run_ops;\n\n{enums}{rows}"
    ))
}

/// Writes `rows.rs`: how the rows of the shared tables are read by position, in the order of their columns.
pub(crate) fn render_rows(catalogue: &Catalogue) -> anyhow::Result<String> {
    let mut rows = String::new();
    for table in RUN_TABLES {
        let columns = &catalogue.tables.get(table).with_context(|| format!("no table {table}"))?.columns;
        let mut fields = String::new();
        let width = written(columns).count();
        for column in written(columns) {
            let reads = if catalogue.enums.contains_key(&column.data_type) { "label" } else { "value" };
            writeln!(fields, "{}: columns.{reads}()?,", field_name(&column.name))?;
        }
        write!(
            rows,
            "\nimpl Row for {table}::Model {{\n\
                 const WIDTH: usize = {width};\n\n\
                 fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {{\n\
                     Ok(Self {{\n{fields}}})\n\
                 }}\n\
             }}\n"
        )?;
    }
    Ok(format!(
        "//! How whole rows of the shared tables are read: by position, in the order in which an entity selects its columns.\n\n\
         use entities_control::{{{}}};\n\
         use sea_orm::DbErr;\n\n\
         use crate::postgres::{{Columns, Row}};\n{rows}",
        RUN_TABLES.join(", ")
    ))
}

/// The columns that an entity has: one that the database computes is none of them.
fn written(columns: &[Column]) -> impl Iterator<Item = &Column> {
    columns.iter().filter(|column| !column.generated || column.default.is_none())
}

/// Maps every label of an enum type onto the other crate's, in both directions.
fn enum_twin(name: &str, labels: &[String]) -> anyhow::Result<String> {
    let rust_name = name.to_upper_camel_case();
    let mut there = String::new();
    let mut back = String::new();
    for label in labels {
        ensure!(
            label.starts_with(|first: char| first.is_ascii_alphabetic())
                && label.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_'),
            "enum {name}: the label {label:?} makes no Rust name"
        );
        let variant = label.to_upper_camel_case();
        writeln!(there, "RunOps::{variant} => ControlPlane::{variant},")?;
        writeln!(back, "ControlPlane::{variant} => RunOps::{variant},")?;
    }
    let path = format!("sea_orm_active_enums::{rust_name}");
    let imports = format!("use control_plane::{path} as ControlPlane;\nuse run_ops::{path} as RunOps;");
    Ok(format!(
        "fn {name}(label: run_ops::{path}) -> control_plane::{path} {{\n\
             {imports}\n\
             match label {{\n{there}}}\n\
         }}\n\n\
         const _: fn(control_plane::{path}) -> run_ops::{path} = |label| {{\n\
             {imports}\n\
             match label {{\n{back}}}\n\
         }};\n\n"
    ))
}

/// Takes a run-ops row apart and puts a control-plane row together, naming every field on both sides.
fn row_twin(table: &str, columns: &[Column], catalogue: &Catalogue) -> anyhow::Result<String> {
    let mut fields = String::new();
    let mut values = String::new();
    for column in written(columns) {
        let field = field_name(&column.name);
        write!(fields, "{field}, ")?;
        match catalogue.enums.contains_key(&column.data_type) {
            false => write!(values, "{field}, ")?,
            true if column.not_null => write!(values, "{field}: {}({field}), ", column.data_type)?,
            true => write!(values, "{field}: {field}.map({}), ", column.data_type)?,
        }
    }
    Ok(format!(
        "const _: fn(run_ops::{table}::Model) -> control_plane::{table}::Model = |row| {{\n\
             let run_ops::{table}::Model {{ {fields} }} = row;\n\
             control_plane::{table}::Model {{ {values} }}\n\
         }};\n\n"
    ))
}

/// The field the ORM's generator makes of a column; asked of the generator itself, which knows keywords.
fn field_name(column: &str) -> String {
    let mut definition = ColumnDef::new(Alias::new(column));
    definition.text();
    CodegenColumn::from(&definition).get_name_snake_case().to_string()
}

/// Writes `schema_version.rs`.
pub(crate) fn render_schema_versions() -> String {
    let control_plane = migration::latest_version(Schema::ControlPlane);
    let run_ops = migration::latest_version(Schema::RunOps);
    format!(
        "//! The versions of the schemas this store was generated from: the number of migrations of each.\n\n\
         /// The version of the control-plane schema.\n\
         pub const CONTROL_PLANE_SCHEMA_VERSION: u32 = {control_plane};\n\n\
         /// The version of the run-ops schema.\n\
         pub const RUN_OPS_SCHEMA_VERSION: u32 = {run_ops};\n"
    )
}

/// Writes `mod.rs`.
pub(crate) fn render_module() -> String {
    "//! What the store knows of the two schemas, written from them.\n\n\
     pub(crate) mod constraints;\n\
     mod parity;\n\
     mod rows;\n\
     pub(crate) mod schema_version;\n"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_become_raw_fields() {
        assert_eq!(field_name("type"), "r#type");
        assert_eq!(field_name("number"), "number");
    }

    #[test]
    fn labels_that_make_no_name_are_refused() {
        assert!(enum_twin("status", &["TIMED_OUT".to_owned(), "V1".to_owned()]).is_ok());
        for label in ["", "2ND", "with space", "größe"] {
            assert!(enum_twin("status", &[label.to_owned()]).is_err(), "{label:?}");
        }
    }

    #[test]
    fn enums_are_mapped_and_other_fields_moved() {
        let column = |name: &str, data_type: &str, not_null: bool| Column {
            name: name.to_owned(),
            data_type: data_type.to_owned(),
            not_null,
            default: None,
            collation: None,
            generated: false,
        };
        let mut catalogue = Catalogue::default();
        catalogue.enums.insert("kind".to_owned(), Vec::new());
        let columns = [column("id", "text", true), column("type", "kind", true), column("was", "kind", false)];
        let text = row_twin("run", &columns, &catalogue).expect("all columns can be named");
        assert!(text.contains("let run_ops::run::Model { id, r#type, was,  } = row;"), "{text}");
        assert!(text.contains("{ id, r#type: kind(r#type), was: was.map(kind),  }"), "{text}");
    }
}
