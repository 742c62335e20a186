"""An answer to an S3 bucket, with the operator's credentials."""

import asyncio

from parakeet_worker import buckets
from parakeet_worker.errors import OutputRefused, OutputUnreachable
from parakeet_worker.outputs.written import Written
from parakeet_worker.request import S3Output
from parakeet_worker.settings import Settings


async def put(written: Written, output: S3Output, settings: Settings) -> dict[str, object]:
    """Write it.

    Raises `S3NotConfigured`, `InvalidRequest` where no bucket is known, `OutputRefused` or
    `OutputUnreachable`.
    """
    bucket = buckets.named(output.bucket, settings, "output_s3.bucket")
    await asyncio.get_running_loop().run_in_executor(
        buckets.threads, _put, written, bucket, output.key, settings
    )
    return {"bucket": bucket, "key": output.key}


def _put(written: Written, bucket: str, key: str, settings: Settings) -> None:
    import botocore.exceptions

    shown = f"s3://{bucket}/{key}"
    try:
        buckets.client(settings).put_object(
            Bucket=bucket, Key=key, Body=written.body, ContentType=written.content_type
        )
    except botocore.exceptions.ClientError as failure:
        code, status = buckets.verdict(failure)
        if buckets.passing(code, status):
            raise OutputUnreachable(shown, code or str(status)) from failure
        raise OutputRefused(shown, code or str(status)) from failure
    except botocore.exceptions.ParamValidationError as failure:
        raise OutputRefused(shown, "it is no possible address") from failure
    except (botocore.exceptions.BotoCoreError, OSError) as failure:
        raise OutputUnreachable(shown, str(failure)) from failure
