-- Relations, functions and types that an extension brought along are nobody's of ours.
WITH extended AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
),
relation AS (
    SELECT c.oid, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.reloptions
    FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    AND NOT EXISTS (SELECT FROM extended e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid)
),
attribute AS (
    SELECT r.relname, a.attrelid, a.attname, a.attnum, a.atttypid, a.atttypmod, a.attcollation,
        a.attnotnull, a.attgenerated, a.attidentity
    FROM pg_attribute a JOIN relation r ON r.oid = a.attrelid
    WHERE r.relkind <> 'S' AND a.attnum > 0 AND NOT a.attisdropped
)
SELECT line COLLATE "C" FROM (
    SELECT format(
        'table %s: %s%s%s%s',
        r.relname,
        CASE r.relkind
            WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view'
            WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence'
        END,
        CASE r.relpersistence WHEN 'u' THEN ' UNLOGGED' END,
        CASE WHEN r.relrowsecurity THEN ' ROW SECURITY' END,
        ' WITH ' || r.reloptions::text
    ) AS line
    FROM relation r
UNION ALL
    SELECT format(
        'column %s.%s: %s%s%s%s%s',
        a.relname,
        a.attname,
        format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attnotnull THEN ' NOT NULL' END,
        ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
        CASE WHEN a.attgenerated <> '' OR a.attidentity <> '' THEN ' GENERATED' END,
        ' COLLATE ' || l.collname
    )
    FROM attribute a
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
UNION ALL
    SELECT format('order %s: %s', a.relname, string_agg(a.attname, ', ' ORDER BY a.attnum))
    FROM attribute a GROUP BY a.relname
UNION ALL
    SELECT format(
        'index %s.%s: %s%s',
        r.relname,
        i.relname,
        pg_get_indexdef(x.indexrelid),
        CASE WHEN NOT (x.indisvalid AND x.indisready) THEN ' INVALID' END
    )
    FROM pg_index x JOIN relation r ON r.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
UNION ALL
    -- NOT NULL is the column's; newer servers have a constraint for it, too. Constraint triggers are triggers.
    SELECT format('constraint %s.%s: %s', r.relname, k.conname, pg_get_constraintdef(k.oid))
    FROM pg_constraint k JOIN relation r ON r.oid = k.conrelid
    WHERE k.contype NOT IN ('n', 't')
UNION ALL
    SELECT format('enum %s: %s', t.typname, string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder))
    FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid
    WHERE t.typnamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM extended x WHERE x.classid = 'pg_type'::regclass AND x.objid = t.oid)
    GROUP BY t.typname
UNION ALL
    -- An aggregate has no definition to show.
    SELECT format(
        'function %s: %s',
        f.oid::regprocedure,
        CASE WHEN f.prokind = 'a' THEN 'aggregate'
             ELSE replace(rtrim(pg_get_functiondef(f.oid), E'\n'), E'\n', E'\\n')
        END
    )
    FROM pg_proc f
    WHERE f.pronamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM extended e WHERE e.classid = 'pg_proc'::regclass AND e.objid = f.oid)
UNION ALL
    SELECT format(
        'trigger %s.%s: %s%s',
        r.relname,
        g.tgname,
        pg_get_triggerdef(g.oid),
        CASE g.tgenabled WHEN 'D' THEN ' DISABLED' WHEN 'R' THEN ' REPLICA' WHEN 'A' THEN ' ALWAYS' END
    )
    FROM pg_trigger g JOIN relation r ON r.oid = g.tgrelid
    WHERE NOT g.tgisinternal
) AS lines ORDER BY 1
