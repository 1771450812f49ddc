import asyncpg
from everyrun.log import topics

async def test_it(settings):
    await topics.check(settings)
    c = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    print(await c.fetch("select * from everyrun.report"))
    print(await c.fetch("select * from everyrun.submission_counts"))
    print(await topics.cluster_id(settings))
