"""What a client of PostgreSQL sees: database_client.py HOST:PORT"""
import sys
import psycopg

host, port = sys.argv[1].rsplit(":", 1)
target = dict(host=host, port=port, user="app", dbname="postgres", connect_timeout=20)


def say(*words):
    print(*words, flush=True)


with psycopg.connect(**target, autocommit=True) as one:
    say("encoding", one.info.encoding, one.info.parameter_status("server_encoding"))
    one.execute("drop table if exists goods")
    one.execute("create table goods (id int primary key, name text, data bytea)")
    with one.cursor() as cursor:
        cursor.executemany("insert into goods values (%s, %s, %s)", [(n, f"no. {n}", bytes([n]) * n) for n in range(200)])
        say("inserted", cursor.rowcount)
    say("sum", one.execute("select sum(length(data)), max(name) from goods").fetchone())
    say("prepared", [one.execute("select name from goods where id = %s", (n,), prepare=True).fetchone() for n in (3, 5, 7)])
    for wrong in ("select * from nowhere", "insert into goods values (1, 'again')", "selec"):
        try:
            one.execute(wrong)
        except psycopg.Error as error:
            say("error", error.sqlstate, str(error).splitlines()[0])
    say("null and unicode", one.execute("select null::int, %s::text", ("grüße – 挨拶",)).fetchone())
    large = b"\x00\xff" * (2 << 20)
    say("large", one.execute("select length(%b::bytea), md5(%b::bytea)", (large, large)).fetchone())
    back = one.execute("select repeat('x', 3000000)").fetchone()[0]
    say("large back", len(back), set(back))

with psycopg.connect(**target) as one:
    with one.cursor() as cursor:
        with cursor.copy("copy goods (id, name) from stdin") as copy:
            for number in range(1000, 21000):
                copy.write_row((number, "copied " * 10))
        say("copied in", cursor.rowcount)
        read = 0
        with cursor.copy("copy (select name from goods where id >= 1000) to stdout") as copy:
            for block in copy:
                read += len(block)
        say("copied out", read)
    with one.cursor("on the server") as cursor:
        cursor.itersize = 100
        say("cursor", sum(row[0] for row in cursor.execute("select id from goods order by id")))
    one.rollback()
    say("rolled back", one.execute("select count(*) from goods").fetchone())
    with one.pipeline():
        answers = [one.execute("select %s::int * 2", (n,)) for n in range(50)]
    say("pipeline", sum(answer.fetchone()[0] for answer in answers))

with psycopg.connect(**target, autocommit=True) as one, psycopg.connect(**target, autocommit=True) as other:
    one.execute("listen news")
    for text in ("first", "second"):
        other.execute("select pg_notify('news', %s)", (text,))
    for note in one.notifies(timeout=20, stop_after=2):
        say("notified", note.channel, note.payload)
    other.execute("set statement_timeout = '50ms'")
    try:
        other.execute("select pg_sleep(20)")
    except psycopg.Error as error:
        say("timed out", error.sqlstate)
    say("ended", other.execute("select pg_terminate_backend(%s)", (one.info.backend_pid,)).fetchone())
    try:
        one.execute("select 1")
    except psycopg.Error as error:
        say("ended by the server", error.sqlstate, str(error).splitlines()[0])
    say("still there", other.execute("select 1").fetchone())
