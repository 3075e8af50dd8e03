"""What of DuckDB's SQL means the same on Spark, to the last digit; everything else is refused by name, with the reason.

    query (DuckDB) ──qualify──▶ every column with its table ──kinds──▶ every expression with its kind ──▶ query (Spark)

Invariants
----------
* This is a list of what is allowed.  A function, an operator, a clause or an option of one that is not on it is refused, also
  if it is new in DuckDB, in Spark or in sqlglot.
* What the three parsers could bind otherwise is in parentheses, and a name has one meaning in all of the query, or it is refused.
* Nothing is cast behind the user's back but a whole number to a DOUBLE: that is the one cast that both do alike.
* An answer is a multiset of rows, in the order of its ORDER BY; where rows of a LIMIT could be other ones, it is refused.
* Sums and means of DOUBLEs are the one exception: each engine, each time, adds in some order.  They are let through, and said.

There is no connection here.  sqlglot parses and writes; what is the same is decided by this list alone, and held to by
tests/analysis/test_spark.py, which asks both engines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from sqlglot import errors, exp, parse
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, traverse_scope

Schema = Mapping[str, Mapping[str, str]]

INT, DOUBLE, TEXT, BOOL, TIME = "whole numbers", "DOUBLE", "VARCHAR", "BOOLEAN", "TIMESTAMP"
HUGE, FRACTION, NULL, JSON, LIST = "HUGEINT", "a DECIMAL", "NULL", "JSON", "a list"
_KINDS = {
    "BIGINT": INT,
    "INTEGER": INT,
    "DOUBLE": DOUBLE,
    "VARCHAR": TEXT,
    "BOOLEAN": BOOL,
    "TIMESTAMP WITH TIME ZONE": TIME,
    "JSON": JSON,
}
_ORDERED = (INT, DOUBLE, TEXT, BOOL, TIME, HUGE)
_INT_MAX = 2**63 - 1
# Both find the nearest DOUBLE of so many digits; DuckDB goes through a DECIMAL.
_DIGITS_MAX = 15
_ADDED = (
    "sums and means of DOUBLEs are added in another order by each engine, so their last digits may differ, and with them "
    "what is compared with or ordered by them."
)

# Why the usual ones are refused; of all others it is only known that nobody has shown that they are the same.
_TIES = "which of several rows with the same value it takes is not said"
_ROUNDS = "the engines round it otherwise"
_ZONES = "it depends on the session's time zone, and the engines count and print times otherwise"
_PATTERNS = "the engines have different regular expressions"
_APPROXIMATE = "it is approximate, and otherwise in each engine"
_NESTED = "lists and structs have other rules, functions and first indices there"
_JSON = "the engines read JSON otherwise"
_CASES = "capitals beyond ASCII differ"
_REASONS: dict[str, str] = {
    **dict.fromkeys(
        ("approx_count_distinct", "approx_distinct", "approx_quantile", "approx_top_k", "reservoir_quantile"), _APPROXIMATE
    ),
    **dict.fromkeys(
        ("arg_max", "arg_min", "max_by", "min_by", "first", "last", "any_value", "first_value", "last_value", "nth_value"), _TIES
    ),
    **dict.fromkeys(("row_number", "lag", "lead", "ntile", "mode", "arbitrary"), _TIES),
    **dict.fromkeys(
        ("median", "quantile", "quantile_cont", "quantile_disc", "percentile_cont", "percentile_disc"),
        "between two values the engines interpolate with other digits, and NaN has another place",
    ),
    **dict.fromkeys(
        ("stddev", "stddev_samp", "stddev_pop", "var_samp", "var_pop", "variance", "variance_pop", "corr", "covar_samp"),
        "the engines compute it by other formulas",
    ),
    **dict.fromkeys(("round", "ceil", "floor", "trunc"), _ROUNDS),
    **dict.fromkeys(("sqrt", "exp", "ln", "log", "log10", "log2", "power", "sin", "cos", "tan"), "the last digit is the library's"),
    **dict.fromkeys(("lower", "upper", "ilike", "initcap"), _CASES),
    **dict.fromkeys(
        ("regexp_like", "regexp_matches", "regexp_extract", "regexp_replace", "regexp_full_match", "regexp_i_like", "glob"),
        _PATTERNS,
    ),
    **dict.fromkeys(
        ("date_trunc", "timestamp_trunc", "date_part", "extract", "epoch", "epoch_ms", "strftime", "strptime", "time_to_str"), _ZONES
    ),
    **dict.fromkeys(("current_timestamp", "now", "current_date", "today", "interval", "at_time_zone", "date_diff"), _ZONES),
    **dict.fromkeys(("json_extract", "json_extract_scalar", "json_extract_string", "json_keys", "to_json", "json"), _JSON),
    **dict.fromkeys(("array", "list", "array_agg", "unnest", "explode", "struct", "bracket", "list_value", "array_size"), _NESTED),
    **dict.fromkeys(("list_contains", "array_contains", "list_transform", "lambda", "dot", "map", "string_agg", "listagg", "group_concat"), _NESTED),
    "int_div": "DuckDB's // rounds down, Spark's div towards zero, and by zero they differ",
    "fsum": "the order in which is added is the engine's",
    "pivot": "Spark's PIVOT has other names and NULLs",
    "qualify": "Spark has no QUALIFY; put the window into a subquery",
    "table_sample": "a sample is another one in each engine",
    "placeholder": "it has no value",
    "rand": "it is random",
    "uuid": "it is random",
    "substring": "the engines count from other places when it is not positive",
    "trim": "the engines take other characters for space",
    "escape": "the engines escape otherwise",
    "xor": "its sign and type differ",
    "values": "its types are guessed",
    "lateral": _NESTED,
    "exists": "what it refers to outside of itself is not followed; write IN (SELECT …)",
}  # fmt: skip


class NotPortable(Exception):
    """What Spark would answer otherwise, or what is not known to be the same."""


@dataclass(frozen=True, slots=True)
class Portable:
    """A query for Spark."""

    sql: str
    notices: list[str] = field(default_factory=list)


def portable(text: str, schema: Schema, values: Mapping[str, Any] | None = None) -> Portable:
    """Return the query for Spark that has the same answer over views with these columns; raise `NotPortable`.

    >>> schema = {"metrics": {"run_id": "VARCHAR", "key": "VARCHAR", "value": "DOUBLE"}}
    >>> portable("SELECT run_id, max(value) AS best FROM metrics GROUP BY run_id", schema).sql
    'SELECT `metrics`.`run_id` AS `run_id`, MAX(`metrics`.`value`) AS `best` FROM `metrics` AS `metrics` GROUP BY `metrics`.`run_id`'
    >>> portable("SELECT median(value) FROM metrics", schema)
    Traceback (most recent call last):
    analysis.portable.NotPortable: median is not portable: between two values the engines interpolate with other digits, and NaN has another place.
    """
    tree = _parsed(text)
    _put_values(tree, values or {})
    _refuse_clauses(tree)
    _refuse_what_may_bind_otherwise(tree)
    _refuse_names_with_two_meanings(tree, schema)
    try:
        for query in tree.find_all(exp.Select, exp.Union):
            _write_out_all(query)
        tree = qualify(
            tree,
            schema={view: dict(columns) for view, columns in schema.items()},
            dialect="duckdb",
            quote_identifiers=True,
        )
    except errors.SqlglotError as error:
        raise NotPortable(f"the query could not be taken apart: {error}.") from None
    walk = _Walk(schema)
    for scope in traverse_scope(tree):
        walk.scope(scope)
    walk.refuse_what_was_passed_over(tree)
    walk.rewrite(tree)
    try:
        sql = tree.sql(dialect="spark", unsupported_level=errors.ErrorLevel.RAISE)
    except errors.SqlglotError as error:
        raise NotPortable(f"the query has no words in Spark's SQL: {error}.") from None
    return Portable(sql, sorted(walk.notices))


def _refused(name: str, reason: str | None = None) -> NotPortable:
    why = reason or _REASONS.get(name.lower(), "it is not known to mean the same on Spark")
    return NotPortable(f"{name} is not portable: {why}.")


def _name(node: exp.Expression) -> str:
    """Return what a person calls it: the name of a function, the words of anything else."""
    if isinstance(node, (exp.IgnoreNulls, exp.RespectNulls)):
        return _name(node.this)
    if isinstance(node, exp.Func) and (called := re.match(r"\w+(?=\()", node.sql(dialect="duckdb"))):
        return called[0].lower()
    if isinstance(node, exp.Func):
        return str(node.sql_name()).lower()
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(node).__name__).lower()


# ── the text ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _parsed(text: str) -> exp.Query:
    try:
        trees = [tree for tree in parse(text, read="duckdb") if tree is not None]
    except errors.SqlglotError as error:
        raise NotPortable(f"sqlglot does not understand the query: {error}") from None
    if len(trees) != 1:
        raise NotPortable("Spark is asked one query at a time.")
    (tree,) = trees
    if isinstance(tree, exp.Query) and not isinstance(tree, (exp.Select, exp.Union)):
        raise _refused(type(tree).__name__.upper())
    if not isinstance(tree, exp.Query):
        raise NotPortable(f"Spark is asked with SELECT; this is {type(tree).__name__.upper()}.")
    return tree


def _put_values(tree: exp.Query, values: Mapping[str, Any]) -> None:
    for node in list(tree.find_all(exp.Placeholder, exp.Parameter)):
        name = node.name
        if name not in values:
            raise _refused(f"${name}", "it has no value")
        value = values[name]
        if isinstance(value, float) and not isfinite(value):
            raise _refused(f"${name}", "it is beyond DOUBLE")
        if isinstance(value, str):
            node.replace(exp.Literal.string(value))
        else:
            written = repr(abs(value))
            # With an exponent it is a DOUBLE; without one a fraction is a DECIMAL.
            is_double = isinstance(value, float) and "e" not in written
            number = exp.Literal.number(f"{written}e0" if is_double else written)
            node.replace(exp.Neg(this=number) if value < 0 else number)


def _refuse_clauses(tree: exp.Query) -> None:
    """Refuse what would be rewritten before it is looked at."""
    for select in tree.find_all(exp.Select):
        _only(select, _SELECT)
    for node in tree.find_all(exp.Union):
        _only(node, {"this", "expression", "distinct", "with_", "order", "limit", "offset"})
    for node in tree.find_all(exp.Except, exp.Intersect):
        raise _refused(_name(node).upper(), "it is not known to mean the same on Spark")
    for node in tree.find_all(exp.With):
        if node.args.get("recursive"):
            raise _refused("WITH RECURSIVE", "Spark has it since 4.1 only")
        if node.parent is not tree:
            raise _refused(
                "a WITH inside a query", "its names would be those of all of it; write it at the beginning"
            )
    for cte in tree.find_all(exp.CTE):
        _only(cte, {"this", "alias"})
    for join in tree.find_all(exp.Join):
        _only(join, {"this", "on", "using", "side", "kind"})
    for alias in tree.find_all(exp.TableAlias):
        if alias.columns:
            raise _refused(f"{alias.name}(…)", "name the columns in the query, with AS")
    for subquery in tree.find_all(exp.Subquery):
        if not isinstance(subquery.unnest(), exp.Query):
            raise _refused("a JOIN in parentheses", "write a query there")
    for node in tree.find_all(exp.Star):
        if node.args.get("replace") or node.args.get("rename"):
            raise _refused("* REPLACE", "write the columns out")


_COMPARING = (
    *(exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.NullSafeEQ, exp.NullSafeNEQ),
    *(exp.Is, exp.In, exp.Between, exp.Like),
)


def _refuse_what_may_bind_otherwise(tree: exp.Query) -> None:
    """Refuse a condition as a bare operand, and a comma beside JOIN: of `a = b IN (c)` each parser makes something else."""
    for select in tree.find_all(exp.Select):
        joins = select.args.get("joins") or []
        has_comma = [join.args.keys().isdisjoint(("on", "using", "kind", "side", "method")) for join in joins]
        if any(has_comma) and not all(has_comma):
            raise _refused("a comma beside JOIN", "each engine joins them in another order; write CROSS JOIN")
    for node in tree.find_all(*_COMPARING):
        for operand in (node.args.get(each) for each in ("this", "expression", "low", "high")):
            if isinstance(operand, (*_COMPARING, exp.Not, exp.And, exp.Or)):
                raise _refused(
                    f"{_name(operand)} within {_name(node)}",
                    "each engine binds them in another order; put the inner one into parentheses",
                )


def _refuse_names_with_two_meanings(tree: exp.Query, schema: Schema) -> None:
    """Refuse an alias that another column has too and that is referred to: the engines take one or the other."""
    columns = {name.lower() for view in schema.values() for name in view}
    given = Counter(each.alias.lower() for each in tree.find_all(exp.Alias))
    columns |= {name for name, times in given.items() if times > 1}
    for select in tree.find_all(exp.Select):
        aliases = {
            each.alias.lower()
            for each in select.expressions
            if isinstance(each, exp.Alias)
            and not (isinstance(each.this, exp.Column) and each.this.name.lower() == each.alias.lower())
        }
        for part in ("where", "group", "having", "order", "expressions"):
            found = select.args.get(part)
            for root in found if isinstance(found, list) else [found] if found else []:
                for column in root.find_all(exp.Column):
                    name = column.name.lower()
                    if (
                        not column.table
                        and name in aliases & columns
                        and column.find_ancestor(exp.Select) is select
                    ):
                        inside_itself = isinstance(root, exp.Alias) and root.alias.lower() == name
                        if not inside_itself:
                            raise _refused(
                                f"the name {column.name!r}",
                                "two columns have it here; call the alias otherwise",
                            )


def _write_out_all(query: exp.Query) -> None:
    """Write GROUP BY ALL and ORDER BY ALL out: the engines' are the same only where no column is a star."""
    group, order = query.args.get("group"), query.args.get("order")
    is_all = order is not None and any(isinstance(each.this, exp.Var) for each in order.expressions)
    if not (is_all or (group is not None and group.args.get("all"))):
        return
    if query.is_star:
        raise _refused("ALL beside *", "write the columns out")
    if group is not None and group.args.get("all"):
        of_rows = [at for at, each in enumerate(query.selects) if not each.find(exp.AggFunc)]
        for each in query.selects:
            if each.find(exp.Window, exp.Query) or not each.find(exp.Column, exp.AggFunc):
                raise _refused(
                    "GROUP BY ALL",
                    "the engines group otherwise by a constant, a window or a query; write GROUP BY out",
                )
            if each.find(exp.AggFunc) and any(
                column.find_ancestor(exp.AggFunc, exp.Filter) is None for column in each.find_all(exp.Column)
            ):
                raise _refused(
                    "GROUP BY ALL", "a column mixes an aggregate with what is grouped by; write GROUP BY out"
                )
        names = {each.alias_or_name.lower() for each in query.selects}
        for part in (query.args.get("having"), order):
            for column in part.find_all(exp.Column) if part else []:
                is_of_answer = not column.table and column.name.lower() in names
                if not is_of_answer and column.find_ancestor(exp.AggFunc, exp.Select) is query:
                    raise _refused(
                        "GROUP BY ALL", "it groups by what HAVING and ORDER BY name too; write GROUP BY out"
                    )
        group.set("all", None)
        group.set("expressions", [exp.Literal.number(at + 1) for at in of_rows])
        if not of_rows:
            query.set("group", None)
    if is_all:
        assert order is not None
        (every,) = order.expressions
        order.set(
            "expressions",
            [
                exp.Ordered(
                    this=exp.Literal.number(at + 1),
                    desc=every.args.get("desc"),
                    nulls_first=every.args.get("nulls_first"),
                )
                for at in range(len(query.selects))
            ],
        )


_SELECT = {
    "expressions",
    "from_",
    "joins",
    "where",
    "group",
    "having",
    "order",
    "limit",
    "offset",
    "distinct",
    "with_",
}


def _only(node: exp.Expression, allowed: Iterable[str]) -> None:
    """Refuse any option of a node that is not on the list."""
    for name, value in node.args.items():
        if value not in (None, False, [], "") and name not in allowed:
            what = name.rstrip("_")
            raise _refused(
                f"{_name(node)} … {what}" if what not in _REASONS else what.upper(), _REASONS.get(what)
            )


# ── the kinds ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Walk:
    """Gives each expression its kind, children first, and refuses what has none."""

    def __init__(self, schema: Schema) -> None:
        self.notices: set[str] = set()
        self._schema = schema
        self._outputs: dict[int, dict[str, str]] = {}
        """Of each SELECT its columns, with their kinds."""
        self._scope: Scope | None = None
        self._rewrites: dict[int, Callable[[exp.Expression], exp.Expression]] = {}
        self._seen: set[int] = set()

    # -- queries --

    def scope(self, scope: Scope) -> None:
        node = scope.expression
        if isinstance(node, exp.Union):
            left, right = (self._outputs[id(side.unnest())] for side in (node.this, node.expression))
            if len(left) != len(right):
                raise _refused("UNION", "its sides have not as many columns")
            kinds = [self._alike("UNION", pair) for pair in zip(left.values(), right.values(), strict=True)]
            if node.args.get("distinct"):
                for kind in kinds:
                    self._comparable("UNION", kind)
            self._outputs[id(node)] = dict(zip(left, kinds, strict=True))
            self._order_of_union(node)
            self._limit(node)
            return
        if not isinstance(node, exp.Select):
            raise _refused(_name(node))
        self._scope = scope
        _only(node, _SELECT)
        with_ = node.args.get("with_")
        if with_ is not None:
            _only(with_, {"expressions"})
        self._sources(node)
        named = [(each.alias_or_name, self.kind(each)) for each in node.expressions]
        outputs = dict(named)
        if len(outputs) != len(named) and not (scope.is_root and node.args.get("order") is None):
            raise _refused("two columns of one name", "give one of them an alias")
        for name, kind in named:
            if kind in (FRACTION, NULL):
                raise _refused(
                    f"the column {name!r}",
                    f"{kind} alone has another type there; CAST it to what it is to be",
                )
        self._outputs[id(node)] = outputs
        for part in ("where", "having"):
            if node.args.get(part):
                self._is(node.args[part].this, BOOL)
        if group := node.args.get("group"):
            _only(group, {"expressions"})
            for each in group.expressions:
                self._comparable("GROUP BY", self.kind(each))
        if distinct := node.args.get("distinct"):
            if distinct.args.get("on"):
                raise _refused("DISTINCT ON", _TIES)
            for kind in outputs.values():
                self._comparable("DISTINCT", kind)
        if order := node.args.get("order"):
            self._order(order)
            if order.find(exp.Window):
                raise _refused(
                    "ORDER BY of a window", "Spark has none; make it a column of the query around it"
                )
            of_rows = order.find(exp.AggFunc) or any(each.table for each in order.find_all(exp.Column))
            if distinct and of_rows:
                raise _refused(
                    "DISTINCT … ORDER BY", "of equal rows it is not said which; order by the columns"
                )
        self._limit(node)

    def _sources(self, node: exp.Select) -> None:
        sources = [node.args["from_"].this] if node.args.get("from_") else []
        for join in node.args.get("joins") or []:
            _only(join, {"this", "on", "side", "kind"})
            if join.kind not in ("", "INNER", "CROSS", "OUTER"):
                raise _refused(f"{join.kind} JOIN")
            sources.append(join.this)
            if on := join.args.get("on"):
                self._is(on, BOOL)
        for source in sources:
            if isinstance(source, exp.Table):
                if not isinstance(source.this, exp.Identifier):
                    raise _refused(f"the macro {_name(source.this)!r}", "macros are DuckDB's; ask the views")
                _only(source, {"this", "alias"})
            elif isinstance(source, exp.Subquery):
                _only(source, {"this", "alias"})
            else:
                raise _refused(_name(source))

    def _order(self, order: exp.Order) -> None:
        for each in order.expressions:
            _only(each, {"this", "desc", "nulls_first"})
            self._comparable("ORDER BY", self.kind(each.this))

    def _order_of_union(self, node: exp.Union) -> None:
        columns = self._outputs[id(node)]
        order = node.args.get("order")
        for each in order.expressions if order else []:
            _only(each, {"this", "desc", "nulls_first"})
            by = each.this
            if not isinstance(by, exp.Column) or by.table or by.name not in columns:
                raise _refused(
                    "ORDER BY of a UNION", "it is by a column of the first side, by its name or its place"
                )
            self._comparable("ORDER BY", columns[by.name])
            self._seen.add(id(by))

    def _limit(self, node: exp.Select | exp.Union) -> None:
        for part in ("limit", "offset"):
            limit = node.args.get(part)
            if limit is None:
                continue
            _only(limit, {"expression"})
            if not (isinstance(limit.expression, exp.Literal) and limit.expression.name.isdecimal()):
                raise _refused(part.upper(), "it is known only where it is a number")
            order = node.args.get("order")
            ordered = {each.this.sql() for each in order.expressions} if order else set()
            # By its name or by what it is.
            outputs = [
                {each.unalias().sql(), exp.to_identifier(each.alias_or_name, quoted=True).sql()}
                for each in node.selects
            ]
            group = node.args.get("group")
            grouped = (
                [
                    {each.sql(), *(name for names in outputs if each.sql() in names for name in names)}
                    for each in group.expressions
                ]
                if group
                else []
            )
            if not ordered or not (
                all(names & ordered for names in outputs)
                or (grouped and all(names & ordered for names in grouped))
            ):
                raise _refused(
                    part.upper(),
                    "rows that are equal by its ORDER BY may be others there; put all columns into ORDER BY, or ALL",
                )

    # -- expressions --

    def kind(self, node: exp.Expression) -> str:
        allowed = _ALLOWED.get(type(node))
        if allowed is None:
            raise _refused(_name(node))
        options, handler = allowed
        _only(node, options)
        self._seen.add(id(node))
        return handler(self, node)

    def _is(self, node: exp.Expression, *kinds: str) -> str:
        kind = self.kind(node)
        if kind not in kinds:
            raise _refused(f"{_name(node)} of {kind}", f"here, only {' or '.join(kinds)} is the same")
        return kind

    def _comparable(self, what: str, kind: str) -> str:
        if kind not in _ORDERED:
            raise _refused(f"{what} of {kind}", "it is compared otherwise there")
        return kind

    def _alike(self, what: str, kinds: Sequence[str], literals: Sequence[exp.Expression] = ()) -> str:
        """Return the kind that values of these kinds become together."""
        found = {kind for kind in kinds if kind != NULL}
        if found == {INT, DOUBLE} or found == {DOUBLE, FRACTION} or found == {INT, DOUBLE, FRACTION}:
            found = {DOUBLE}
        if found == {INT, HUGE}:
            found = {HUGE}
        if FRACTION in found:
            raise _refused(
                f"a number with a fraction beside {' and '.join(sorted(found - {FRACTION})) or 'another'}",
                "it is a DECIMAL, and these have other digits there; write it with an exponent, as 5e-1, or CAST the other to DOUBLE",
            )
        if len(found) > 1:
            raise _refused(
                f"{what} of {' and '.join(sorted(found))}",
                "they are cast otherwise there; CAST them yourself",
            )
        return found.pop() if found else NULL

    def _column(self, node: exp.Expression) -> str:
        assert isinstance(node, exp.Column)
        assert self._scope is not None
        if not node.table:
            # A column of the answer, in ORDER BY and the like.
            selected = {each.alias_or_name: each for each in self._scope.expression.selects}
            if node.name not in selected:
                raise _refused(f"the column {node.name!r}", "it is not clear which it is")
            known = self._outputs.get(id(self._scope.expression), {})
            return known.get(node.name) or self.kind(selected[node.name].unalias())
        source = self._scope.sources.get(node.table)
        if isinstance(source, Scope):
            return self._outputs[id(source.expression)][node.name]
        if not isinstance(source, exp.Table) or node.table in self._scope.outer_columns:
            raise _refused(
                f"the column {node.sql()}", "it is of a query around this one, which is not followed"
            )
        columns = {name.lower(): kind for name, kind in self._schema.get(source.name, {}).items()}
        return _KINDS.get(columns[node.name.lower()], LIST)

    def _literal(self, node: exp.Expression) -> str:
        if node.is_string:
            return TEXT
        text = node.name
        if text.isdecimal():
            if int(text) > _INT_MAX:
                raise _refused(text, "it is beyond BIGINT")
            return INT
        self._rewrites[id(node)] = lambda node: exp.cast(exp.Literal.string(node.name), "DOUBLE")
        if "e" in text.lower():
            return DOUBLE
        if len(text.replace(".", "").strip("0")) > _DIGITS_MAX:
            raise _refused(text, "it has more digits than a DOUBLE; write it with an exponent")
        return FRACTION

    def _compared(self, node: exp.Expression) -> str:
        kind = self._alike(_name(node), [self.kind(node.left), self.kind(node.right)])
        if kind != NULL:
            self._comparable(_name(node), kind)
        return BOOL

    def _both(self, node: exp.Expression) -> str:
        self._is(node.left, BOOL)
        self._is(node.right, BOOL)
        return BOOL

    def _not(self, node: exp.Expression) -> str:
        return self._is(node.this, BOOL)

    def _is_null(self, node: exp.Expression) -> str:
        kind = self.kind(node.this)
        if not isinstance(node.expression, exp.Null) and not (
            isinstance(node.expression, exp.Boolean) and kind == BOOL
        ):
            raise _refused(f"IS of {kind}")
        return BOOL

    def _in(self, node: exp.Expression) -> str:
        kinds = [self.kind(node.this), *(self.kind(each) for each in node.expressions)]
        if query := node.args.get("query"):
            if not _is_condition(node):
                raise _refused(
                    "IN of a query as a value",
                    "Spark takes its NULL for false; make it a condition of WHERE or HAVING, beside others only with AND",
                )
            outputs = self._outputs.get(id(query.unnest()))
            if outputs is None or len(outputs) != 1:
                raise _refused("IN of a query", "it has one column")
            kinds += outputs.values()
        self._comparable("IN", self._alike("IN", kinds))
        return BOOL

    def _between(self, node: exp.Expression) -> str:
        self._comparable(
            "BETWEEN",
            self._alike("BETWEEN", [self.kind(node.args[each]) for each in ("this", "low", "high")]),
        )
        return BOOL

    def _arithmetic(self, node: exp.Expression) -> str:
        kind = self._alike(_name(node), [self.kind(node.left), self.kind(node.right)])
        if kind not in (INT, DOUBLE):
            raise _refused(f"{_name(node)} of {kind}", "its type and its limits are others there")
        return kind

    def _divided(self, node: exp.Expression) -> str:
        kinds = {self.kind(node.left), self.kind(node.right)}
        if not kinds <= {INT, DOUBLE, FRACTION, HUGE}:
            raise _refused(f"/ of {' and '.join(sorted(kinds))}")
        by = node.right.unnest()
        if not (_is_nonzero(by) or (isinstance(by, exp.Nullif) and _is_zero(by.expression))):
            raise _refused(
                "/",
                "by zero it is infinite in DuckDB and an error in Spark; divide by nullif(…, 0), or by a number",
            )
        if HUGE in kinds and kinds != {HUGE, DOUBLE}:
            self.kind(node.left)
        self._rewrites[id(node)] = lambda node: exp.Div(
            this=exp.cast(node.left, "DOUBLE"),
            expression=exp.cast(node.right, "DOUBLE"),
            typed=False,
            safe=False,
        )
        return DOUBLE

    def _remainder(self, node: exp.Expression) -> str:
        self._is(node.left, INT)
        self._is(node.right, INT)
        if not _is_nonzero(node.right.unnest()):
            raise _refused("%", "by zero the engines differ; divide by a number")
        return INT

    def _negative(self, node: exp.Expression) -> str:
        if node.this.sql() == str(2**31):
            self._as_bigint(node)
        return self._is(node.this, INT, DOUBLE, FRACTION)

    def _wrapped(self, node: exp.Expression) -> str:
        return self.kind(node.this)

    def _subquery(self, node: exp.Expression) -> str:
        query = node.unnest()
        outputs = self._outputs.get(id(query))
        is_one_row = (
            isinstance(query, exp.Select)
            and not query.args.get("group")
            and query.expressions[0].find(exp.AggFunc)
        )
        if outputs is None or len(outputs) != 1 or not is_one_row:
            raise _refused(
                "a query as a value", "it has one row only where it is an aggregate without GROUP BY"
            )
        return next(iter(outputs.values()))

    def _like(self, node: exp.Expression) -> str:
        self._is(node.this, TEXT)
        pattern = node.expression
        if not pattern.is_string or "\\" in pattern.name:
            raise _refused(
                "LIKE",
                "Spark takes a backslash in a pattern for an escape; only a pattern in quotes without one is the same",
            )
        return BOOL

    def _joined(self, node: exp.Expression) -> str:
        self._is(node.left, TEXT)
        return self._is(node.right, TEXT)

    def _found_in(self, node: exp.Expression) -> str:
        self._is(node.this, TEXT)
        self._is(node.expression, TEXT)
        return BOOL

    def _length(self, node: exp.Expression) -> str:
        self._is(node.this, TEXT)
        return self._as_bigint(node)

    def _as_bigint(self, node: exp.Expression) -> str:
        # An INTEGER there, which would overflow before DuckDB's BIGINT.
        self._rewrites[id(node)] = lambda node: exp.cast(node.copy(), "BIGINT")
        return INT

    def _absolute(self, node: exp.Expression) -> str:
        return self._is(node.this, INT, DOUBLE)

    def _one_of(self, node: exp.Expression) -> str:
        values = [node.this, *node.expressions]
        kind = self._alike(_name(node), [self.kind(each) for each in values])
        if not isinstance(node, exp.Coalesce):
            self._comparable(_name(node), kind)
        return kind

    def _null_if(self, node: exp.Expression) -> str:
        kind = self.kind(node.this)
        if self._alike("nullif", [kind, self.kind(node.expression)]) != kind:
            raise _refused("nullif", "its type is another one there; CAST both to one")
        return self._comparable("nullif", kind)

    def _case(self, node: exp.Expression) -> str:
        of = [self.kind(node.this)] if node.this else []
        kinds = []
        for each in node.args["ifs"]:
            self._seen.add(id(each))
            if of:
                self._comparable("CASE", self._alike("CASE", [*of, self.kind(each.this)]))
            else:
                self._is(each.this, BOOL)
            kinds.append(self.kind(each.args["true"]))
        if default := node.args.get("default"):
            kinds.append(self.kind(default))
        return self._alike("CASE", kinds)

    def _if(self, node: exp.Expression) -> str:
        self._is(node.this, BOOL)
        branches = [node.args["true"], *([node.args["false"]] if node.args.get("false") else [])]
        return self._alike("IF", [self.kind(each) for each in branches])

    def _cast(self, node: exp.Expression) -> str:
        before, to = self.kind(node.this), node.args["to"].sql(dialect="duckdb").upper()
        after = {"BIGINT": INT, "DOUBLE": DOUBLE, "TEXT": TEXT, "VARCHAR": TEXT, "BOOLEAN": BOOL}.get(to)
        if after is None or (before, after) not in _CASTS:
            raise _refused(
                f"CAST of {before} to {to}", "its rounding, its limits or its text are others there"
            )
        return after

    def _is_nan(self, node: exp.Expression) -> str:
        self._is(node.this, DOUBLE)
        # NaN equals itself in both; Spark's own isnan makes false of NULL.
        self._rewrites[id(node)] = lambda node: exp.paren(exp.EQ(this=node.this, expression=_double("NaN")))
        return BOOL

    def _is_inf(self, node: exp.Expression) -> str:
        self._is(node.this, DOUBLE)
        self._rewrites[id(node)] = lambda node: exp.paren(
            exp.In(this=node.this, expressions=[_double("Infinity"), _double("-Infinity")])
        )
        return BOOL

    def _unnamed(self, node: exp.Expression) -> str:
        """Functions of DuckDB that sqlglot has no class for."""
        if _name(node) != "isfinite" or len(node.expressions) != 1:
            raise _refused(_name(node))
        (value,) = node.expressions
        self._is(value, DOUBLE)
        self._rewrites[id(node)] = lambda node: exp.paren(
            exp.And(
                this=exp.GT(this=node.expressions[0].copy(), expression=_double("-Infinity")),
                expression=exp.LT(this=node.expressions[0].copy(), expression=_double("Infinity")),
            )
        )
        return BOOL

    # -- aggregates --

    def _count(self, node: exp.Expression) -> str:
        counted = node.this
        if isinstance(counted, exp.Distinct):
            _only(counted, {"expressions"})
            if len(counted.expressions) != 1:
                raise _refused("count(DISTINCT …) of several", "rows with a NULL are counted otherwise")
            self._comparable("count(DISTINCT …)", self.kind(counted.expressions[0]))
        elif not isinstance(counted, exp.Star):
            self.kind(counted)
        return INT

    def _extreme(self, node: exp.Expression) -> str:
        return self._comparable(_name(node), self.kind(node.this))

    def _sum(self, node: exp.Expression) -> str:
        if self._is(node.this, INT, DOUBLE) == INT:
            # DuckDB's is a HUGEINT; Spark's BIGINT would overflow.
            self._rewrites[id(node)] = lambda node: exp.Sum(this=exp.cast(node.this, "DECIMAL(38, 0)"))
            return HUGE
        self.notices.add(_ADDED)
        return DOUBLE

    def _mean(self, node: exp.Expression) -> str:
        if self._is(node.this, INT, DOUBLE) == INT:
            raise _refused(
                "avg of whole numbers", "Spark adds them as DOUBLEs; write sum(…) / nullif(count(…), 0)"
            )
        self.notices.add(_ADDED)
        return DOUBLE

    def _filtered(self, node: exp.Expression) -> str:
        self._is(node.expression.this, BOOL)
        return self._aggregate(node.this)

    def _aggregate(self, node: exp.Expression) -> str:
        if not isinstance(node, (exp.Count, exp.Min, exp.Max, exp.Sum, exp.Avg)):
            raise _refused(_name(node))
        return self.kind(node)

    def _window(self, node: exp.Expression) -> str:
        for each in node.args.get("partition_by") or []:
            self._comparable("PARTITION BY", self.kind(each))
        if order := node.args.get("order"):
            self._order(order)
        if isinstance(node.this, (exp.Rank, exp.DenseRank)):
            _only(node.this, ())
            self._seen.add(id(node.this))
            return self._as_bigint(node)
        if not isinstance(node.this, (exp.Count, exp.Min, exp.Max, exp.Sum)):
            raise _refused(_name(node.this))
        if isinstance(node.this.this, exp.Distinct):
            raise _refused("count(DISTINCT …) of a window", "Spark has none")
        return self.kind(node.this)

    # -- writing --

    def refuse_what_was_passed_over(self, tree: exp.Query) -> None:
        """Refuse what stands where none of the above looks."""
        for node in tree.find_all(exp.Column, exp.Func, exp.Binary):
            if id(node) not in self._seen:
                raise _refused(f"{_name(node)} at this place")

    def rewrite(self, tree: exp.Query) -> None:
        # Children first: what is put in the place of a parent takes them along.
        for node in reversed(list(tree.bfs())):
            if change := self._rewrites.get(id(node)):
                node.replace(change(node))


def _double(text: str) -> exp.Expression:
    return exp.cast(exp.Literal.string(text), "DOUBLE")


def _is_condition(node: exp.Expression) -> bool:
    """Whether it is one of those that WHERE or HAVING has, joined by AND; or NOT of it is."""
    within = node.parent
    while isinstance(within, exp.Paren):
        within = within.parent
    if isinstance(within, exp.Not):
        within = within.parent
    while isinstance(within, (exp.Paren, exp.And)):
        within = within.parent
    return isinstance(within, (exp.Where, exp.Having)) and isinstance(within.parent, exp.Select)


def _is_zero(node: exp.Expression) -> bool:
    return isinstance(node, exp.Literal) and not node.is_string and float(node.name) == 0


def _is_nonzero(node: exp.Expression) -> bool:
    node = node.this if isinstance(node, exp.Neg) else node
    return isinstance(node, exp.Literal) and not node.is_string and float(node.name) != 0


_CASTS = {
    (INT, INT),
    (INT, DOUBLE),
    (INT, TEXT),
    (BOOL, INT),
    (BOOL, BOOL),
    (DOUBLE, DOUBLE),
    (FRACTION, DOUBLE),
    (HUGE, DOUBLE),
    (TEXT, TEXT),
    (NULL, INT),
    (NULL, DOUBLE),
    (NULL, TEXT),
}
_Handler = Callable[[_Walk, exp.Expression], str]
_TWO = {"this", "expression"}
_ALLOWED: dict[type[exp.Expression], tuple[set[str], _Handler]] = {
    exp.Column: ({"this", "table"}, _Walk._column),
    exp.Literal: ({"this", "is_string"}, _Walk._literal),
    exp.Boolean: ({"this"}, lambda walk, node: BOOL),
    exp.Null: (set(), lambda walk, node: NULL),
    exp.Alias: ({"this", "alias"}, _Walk._wrapped),
    exp.Paren: ({"this"}, _Walk._wrapped),
    exp.Subquery: ({"this", "alias"}, _Walk._subquery),
    **dict.fromkeys(
        (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.NullSafeEQ, exp.NullSafeNEQ),
        (_TWO, _Walk._compared),
    ),
    **dict.fromkeys((exp.And, exp.Or), (_TWO, _Walk._both)),
    exp.Not: ({"this"}, _Walk._not),
    exp.Is: (_TWO, _Walk._is_null),
    exp.In: ({"this", "expressions", "query"}, _Walk._in),
    exp.Between: ({"this", "low", "high"}, _Walk._between),
    **dict.fromkeys((exp.Add, exp.Sub, exp.Mul), (_TWO, _Walk._arithmetic)),
    exp.Div: (_TWO, _Walk._divided),
    exp.Mod: (_TWO, _Walk._remainder),
    exp.Neg: ({"this"}, _Walk._negative),
    exp.Like: (_TWO, _Walk._like),
    exp.DPipe: (_TWO | {"safe"}, _Walk._joined),
    **dict.fromkeys((exp.StartsWith, exp.EndsWith, exp.Contains), (_TWO, _Walk._found_in)),
    exp.Length: ({"this"}, _Walk._length),
    exp.Abs: ({"this"}, _Walk._absolute),
    exp.Coalesce: ({"this", "expressions"}, _Walk._one_of),
    exp.Greatest: ({"this", "expressions", "ignore_nulls"}, _Walk._one_of),
    exp.Least: ({"this", "expressions", "ignore_nulls"}, _Walk._one_of),
    exp.Nullif: (_TWO, _Walk._null_if),
    exp.Case: ({"this", "ifs", "default"}, _Walk._case),
    exp.If: ({"this", "true", "false"}, _Walk._if),
    exp.Cast: ({"this", "to"}, _Walk._cast),
    exp.IsNan: ({"this"}, _Walk._is_nan),
    exp.IsInf: ({"this"}, _Walk._is_inf),
    exp.Anonymous: ({"this", "expressions"}, _Walk._unnamed),
    exp.Count: ({"this", "big_int"}, _Walk._count),
    **dict.fromkeys((exp.Min, exp.Max), ({"this"}, _Walk._extreme)),
    exp.Sum: ({"this"}, _Walk._sum),
    exp.Avg: ({"this"}, _Walk._mean),
    exp.Filter: (_TWO, _Walk._filtered),
    exp.Window: ({"this", "partition_by", "order", "over"}, _Walk._window),
}
