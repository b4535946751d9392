"""Makes an AWS account at moto's server that may ask for ECR's tokens; prints its key id and secret.

Arguments: the server's URL. The server lets exactly these requests pass unsigned (INITIAL_NO_AUTH_ACTION_COUNT=3).
"""

import json
import sys

import boto3

iam = boto3.client("iam", endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
iam.create_user(UserName="puller")
key = iam.create_access_key(UserName="puller")["AccessKey"]
statement = {"Effect": "Allow", "Action": "ecr:GetAuthorizationToken", "Resource": "*"}
iam.put_user_policy(
    UserName="puller",
    PolicyName="ecr",
    PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [statement]}),
)
print(key["AccessKeyId"], key["SecretAccessKey"])
