//! Builders of control-plane rows: good defaults for everything, one call for what a test is about.
//!
//! ```no_run
//! # async fn example(db: &sea_orm::DatabaseConnection) -> anyhow::Result<()> {
//! use tests::build;
//!
//! let organization = build::organization().insert(db).await?;
//! let project = build::project(&organization).insert(db).await?;
//! let production = build::environment(&organization, &project).production().insert(db).await?;
//! let paused = build::environment(&organization, &project).with(|row| row.paused = true).insert(db).await?;
//! # Ok(())
//! # }
//! ```

mod rows;
mod world;

use anyhow::{Context, Result};
use sea_orm::{ActiveModelTrait, ConnectionTrait, EntityTrait, IntoActiveModel, ModelTrait};

pub use rows::{
    deployment, environment, feature_flag, member, organization, project, promotion, queue, serves, task, user, worker,
    worker_group,
};
pub use world::{World, world};

/// A row that is not in the database yet.
#[derive(Clone, Debug)]
#[must_use = "a row is in the database once it is inserted"]
pub struct Row<E: EntityTrait> {
    model: E::Model,
}

impl<E: EntityTrait> Row<E> {
    fn new(model: E::Model) -> Self {
        Row { model }
    }

    /// Changes anything of the row.
    pub fn with(mut self, change: impl FnOnce(&mut E::Model)) -> Self {
        change(&mut self.model);
        self
    }

    /// Inserts the row and returns it.
    ///
    /// # Errors
    /// If the database refuses it.
    pub async fn insert(self, db: &impl ConnectionTrait) -> Result<E::Model>
    where
        E::Model: ModelTrait<Entity = E> + IntoActiveModel<E::ActiveModel> + Clone,
    {
        // A row that was read counts as unchanged; here every column is to be written.
        let row = self.model.clone().into_active_model().reset_all();
        let inserted = E::insert(row).exec_without_returning(db).await;
        inserted.with_context(|| format!("could not insert into {}", E::default().table_name()))?;
        Ok(self.model)
    }
}
