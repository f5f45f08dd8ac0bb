//! DataFusion's planner of SQL expressions, without the query engine around it: there are no tables, aggregates or windows
//! to be named in a condition on one row.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::DataType;
use datafusion_common::config::ConfigOptions;
use datafusion_common::{DFSchema, Result, TableReference, not_impl_err};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::planner::{ContextProvider, ExprPlanner};
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::{AggregateUDF, Expr, ScalarUDF, TableSource, WindowUDF};
use datafusion_functions::core::planner::CoreFunctionPlanner;
use datafusion_functions::datetime::planner::DatetimeFunctionPlanner;
use datafusion_functions::unicode::planner::UnicodeFunctionPlanner;
use datafusion_optimizer::simplify_expressions::ExprSimplifier;
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion_sql::parser::DFParserBuilder;
use datafusion_sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion_sql::sqlparser::ast::Expr as SqlExpr;
use datafusion_sql::sqlparser::dialect::PostgreSqlDialect;

/// How deep an expression may nest.
const DEPTH: usize = 50;

pub(super) struct Planner {
    functions: HashMap<String, Arc<ScalarUDF>>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    options: Arc<ConfigOptions>,
}

impl Planner {
    pub(super) fn new() -> Self {
        let mut options = ConfigOptions::new();
        // 0.1 means a tenth: decimals are compared exactly.
        options.sql_parser.parse_float_as_decimal = true;
        let mut functions = HashMap::new();
        for function in datafusion_functions::all_default_functions() {
            for name in std::iter::once(function.name()).chain(function.aliases().iter().map(String::as_str)) {
                functions.insert(name.to_owned(), Arc::clone(&function));
            }
        }
        let planners: Vec<Arc<dyn ExprPlanner>> = vec![
            Arc::new(CoreFunctionPlanner::default()),
            Arc::new(DatetimeFunctionPlanner),
            Arc::new(UnicodeFunctionPlanner),
        ];
        Self { functions, planners, options: Arc::new(options) }
    }

    /// The expression that `text` is, over the columns of `schema`.
    pub(super) fn parse(&self, text: &str, schema: &DFSchema) -> Result<Expr> {
        let parser = DFParserBuilder::new(text).with_dialect(&PostgreSqlDialect {}).with_recursion_limit(DEPTH);
        self.plan(parser.build()?.parse_into_expr()?.expr, schema)
    }

    /// The expression that a tree of SQL means, over the columns of `schema`.
    pub(super) fn plan(&self, tree: SqlExpr, schema: &DFSchema) -> Result<Expr> {
        let planner = SqlToRel::new_with_options(self, ParserOptions::from(&self.options.sql_parser));
        planner.sql_to_expr(tree, schema, &mut PlannerContext::new())
    }

    /// The same with types that agree, ready for batches of `schema`.
    pub(super) fn bind(&self, expression: Expr, schema: DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
        let schema = Arc::new(schema);
        let context = SimplifyContext::default()
            .with_schema(Arc::clone(&schema))
            .with_config_options(Arc::clone(&self.options))
            .with_current_time();
        let coerced = ExprSimplifier::new(context).coerce(expression, &schema)?;
        create_physical_expr(&coerced, &schema, &ExecutionProps::new())
    }
}

impl ContextProvider for Planner {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        not_impl_err!("a condition reads its own table only, not {name}")
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.functions.get(name).cloned()
    }

    fn get_aggregate_meta(&self, _: &str) -> Option<Arc<AggregateUDF>> {
        None
    }

    fn get_window_meta(&self, _: &str) -> Option<Arc<WindowUDF>> {
        None
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        self.functions.keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}
