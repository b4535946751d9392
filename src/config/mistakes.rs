//! Every mistake that a file can have, with the answer that it gets.

use super::Config;

/// A text, and what the answer to it begins with.
const MISTAKES: &[(&str, &str)] = &[
    // Unknown keys, at every depth.
    ("rot = \"/x\"", "line 1: rot: unknown key; did you mean root?"),
    ("capacity = \"1GiB\"", "line 1: capacity: unknown key; did you mean store.capacity?"),
    ("[stor]\ncapacity = \"1GiB\"", "line 1: stor: unknown key; did you mean store?"),
    ("[store]\ncapcity = \"1GiB\"", "line 2: store.capcity: unknown key; did you mean store.capacity?"),
    ("[limits]\nmin-rate = 1", "line 2: limits.min-rate: unknown key; did you mean limits.min_rate?"),
    ("[[listener]]\nadress = \"x\"", "line 2: listener[0].adress: unknown key; did you mean listener[0].address?"),
    (
        "[[listener]]\ntls = { cert = \"x\" }",
        "line 2: listener[0].tls.cert: unknown key; did you mean listener[0].tls.certificate?",
    ),
    (
        "[[listener]]\naddress = \"127.0.0.1:1\"\n[[listener]]\naddress = \"127.0.0.1:2\"\ntls = { kye = \"x\" }",
        "line 5: listener[1].tls.kye: unknown key; did you mean listener[1].tls.key?",
    ),
    (
        "[upstream.\"a.b\"]\nurls = \"x\"",
        "line 2: upstream.\"a.b\".urls: unknown key; did you mean upstream.\"a.b\".url?",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { form = \"auto\" }",
        "line 2: upstream.\"a.b\".credentials.form: unknown key; did you mean upstream.\"a.b\".credentials.from?",
    ),
    (
        "[[upstream.\"a.b\".rule]]\nrepo = \"x\"\n[[upstream.\"a.b\".rule]]\nrepositroy = \"x\"",
        "line 2: upstream.\"a.b\".rule[0].repo: unknown key; did you mean upstream.\"a.b\".rule[0].repository?\nline 4: upstream.\"a.b\".rule[1].repositroy: unknown key; \
             did you mean upstream.\"a.b\".rule[1].repository?",
    ),
    ("[zzzzzzz]", "line 1: zzzzzzz: unknown key"),
    (
        "[upstream.\"a.b\"]\nrepository = \"x\"",
        "line 2: upstream.\"a.b\".repository: unknown key; did you mean upstream.\"NAME\".rule.repository?",
    ),
    (
        "[[upstream.\"a.b\".rule]]\ntags = \"5m\"\nmax_rate = \"1MiB\"",
        "line 3: upstream.\"a.b\".rule[0].max_rate: unknown key; did you mean upstream.\"NAME\".max_rate?",
    ),
    // An unknown key hides no other mistake, mistakes stand in the order of their lines, and what a misspelt key was to say
    // does not count as missing.
    (
        "[store]\ncapacity = \"5\"\ncapcity = \"5\"\n[[pin]]\nupstraem = \"ghcr.io\"\nrepository = \"a\"\n[limits]\nidle = 75",
        "line 2: store.capacity: \"5\" is not a capacity: write a size with its unit such as \"100GiB\", or a part of the \
         file system such as \"50%\" (1% to 100%)\nline 3: store.capcity: unknown key; did you mean store.capacity?\n\
         line 5: pin[0].upstraem: unknown key; did you mean pin[0].upstream?\nline 8: limits.idle: \"75\" is not a duration",
    ),
    (
        "[[listener]]\nadress = \"127.0.0.1:1\"\ntls = { key = \"k\" }\n[upstream.\"a.b\"]\nurls = \"x\"\ncredentials = { }",
        "line 2: listener[0].adress: unknown key; did you mean listener[0].address?\nline 3: listener[0].tls: missing: tls needs \
         both certificate and key, each the path of a PEM file\nline 5: upstream.\"a.b\".urls: unknown key; did you mean \
         upstream.\"a.b\".url?\nline 6: upstream.\"a.b\".credentials",
    ),
    // One that is wrong is not missing.
    (
        "[[listener]]\naddress = \":5000\"\n[[listener]]\naddress = \"127.0.0.1:70000\"",
        "line 2: listener[0].address: \":5000\" is not an address to listen on: write an IP address and a port, such as \
         \"127.0.0.1:5000\", \"[::1]:5000\" or \"0.0.0.0:5000\" (all), or \"unix:/path\"\nline 4: listener[1].address: ",
    ),
    (
        "[upstream.docker.io]\ntags = \"5m\"",
        "line 1: upstream.docker.io: unknown key; a name with dots needs quotes: write [upstream.\"docker.io\"]",
    ),
    (
        "[upstream.my.own.registry]\ntags = \"5m\"",
        "line 1: upstream.my.own: unknown key; a name with dots needs quotes: write [upstream.\"my.own.registry\"]",
    ),
    (
        "[upstream.\"a.b\"]\npush = \"never\"",
        "line 2: upstream.\"a.b\".push: \"never\" is not who pushes: write \"client\" (callers with their own credential)",
    ),
    (
        "[upstream.\"a.b\"]\nmirror = [\"https://x\"]",
        "line 2: upstream.\"a.b\".mirror: unknown key; did you mean upstream.\"a.b\".mirrors?",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { password = \"hunter2\" }",
        "line 2: upstream.\"a.b\".credentials.password: passwords are not written here",
    ),
    // Shapes and syntax.
    ("[listener]\naddress = \"x\"", "line 1: listener: invalid type: map, expected a sequence; write [[listener]]"),
    ("store = 5", "line 1: store: invalid type: integer `5`, expected a table"),
    ("[store]\ncapacity = []", "line 2: store.capacity: invalid type: sequence, expected a text in quotes"),
    ("[upstream.\"a.b\"]\nconnect = \"x\"", "line 2: upstream.\"a.b\".connect: invalid type"),
    ("root = /x", "line 1: not TOML: "),
    ("\nroot = \"a\"\nroot = \"b\"", "line 3: not TOML: duplicate key"),
    // Values.
    ("root = 5", "line 1: root: 5 is not a text in quotes"),
    ("root = \"\"", "line 1: root: \"\" is not a path"),
    (
        "root = \"credential:x\"",
        "line 1: root: \"credential:x\" is not a path here: \"credential:NAME\" is for files that are read",
    ),
    (
        "[admin]\ntoken_file = \"credential:../x\"",
        "line 2: admin.token_file: \"credential:../x\" is not a path here: \"credential:NAME\" is for files that are read",
    ),
    ("builtin_upstreams = \"no\"", "line 1: builtin_upstreams: \"no\" is not true or false"),
    ("[store]\ncapacity = \"0%\"", "line 2: store.capacity: \"0%\" is not a capacity"),
    ("[store]\ncapacity = \"101%\"", "line 2: store.capacity: \"101%\" is not a capacity"),
    ("[store]\ncapacity = 0", "line 2: store.capacity: \"0\" is not a capacity"),
    ("[store]\ncapacity = \"10G\"", "line 2: store.capacity: \"10G\" is not a capacity"),
    ("[store]\ndurability = \"none\"", "line 2: store.durability: \"none\" is not a durability"),
    ("[store]\nmax_manifest = \"1GiB\"", "line 2: store.max_manifest: \"1GiB\" is not a size for manifests"),
    ("[store]\nmax_age = \"5m\"", "line 2: store.max_age: \"5m\" is not an age limit"),
    ("[[pin]]\nrepository = \"a\"", "line 1: pin[0].upstream: missing: a pin needs upstream and repository"),
    (
        "[[pin]]\nupstream = \"nowhere.example\"\nrepository = \"a\"",
        "line 2: pin[0].upstream: no upstream is called \"nowhere.example\"; add a table [upstream.\"nowhere.example\"]",
    ),
    (
        "[[pin]]\nupstream = \"dokcer.io\"\nrepository = \"library/a\"",
        "line 2: pin[0].upstream: no upstream is called \"dokcer.io\"; did you mean docker.io?",
    ),
    ("[[pin]]\nupstream = \"docker.io\"\nrepository = \"alp*\"", "line 3: pin[0].repository: \"alp*\" matches nothing"),
    (
        "[[pin]]\nupstream = \"ghcr.io\"\nrepository = \"a\"\ntag = \"a/b\"",
        "line 4: pin[0].tag: \"a/b\" is not a pattern",
    ),
    ("[store]\nscrub = true", "line 2: store.scrub: \"true\" is not how the scrub works: write false for never"),
    ("[store]\nscrub = []", "line 2: store.scrub: invalid type: sequence, expected false, or a table"),
    ("[store]\nscrub = { rat = \"1MiB/s\" }", "line 2: store.scrub.rat: unknown key; did you mean store.scrub.rate?"),
    ("[store]\nscrub = { rate = \"20\" }", "line 2: store.scrub.rate: \"20\" is not a rate"),
    ("[store]\nscrub = { rate = \"0MiB/s\" }", "line 2: store.scrub.rate: \"0MiB/s\" is not a rate"),
    ("[store]\nscrub = { every = \"5m\" }", "line 2: store.scrub.every: \"5m\" is not how often"),
    ("[store]\nscrub = { hours = \"1-6\" }", "line 2: store.scrub.hours: \"1-6\" is not hours of the day"),
    ("[limits]\nidle = \"0s\"", "line 2: limits.idle: \"0s\" is not a time limit"),
    ("[limits]\nidle = 75", "line 2: limits.idle: \"75\" is not a duration"),
    ("[limits]\nconnections = 0", "line 2: limits.connections: \"0\" is not a whole number"),
    ("[limits]\nmin_rate = \"-1\"", "line 2: limits.min_rate: \"-1\" is not a size"),
    ("[log]\nformat = \"xml\"", "line 2: log.format: \"xml\" is not a log format"),
    ("[log]\notlp = \"ftp://x\"", "line 2: log.otlp: \"ftp://x\" is not a receiver of traces"),
    ("[log]\notlp_sample = \"1.5\"", "line 2: log.otlp_sample: \"1.5\" is not a part of the traces"),
    (
        "[log]\nfilter = \"warning\"",
        "line 2: log.filter: \"warning\" is not a log filter: write levels (off, error, warn,",
    ),
    ("[log]\nfilter = \"info,hyper\"", "line 2: log.filter: \"info,hyper\" is not a log filter"),
    ("[log]\nfilter = \"\"", "line 2: log.filter: \"\" is not a log filter"),
    ("[log]\nfilter = \"a=b=c\"", "line 2: log.filter: \"a=b=c\" is not a log filter"),
    ("[admin]\naddress = \"unix:/x\"", "line 2: admin.address: \"unix:/x\" is not an address for the admin listener"),
    ("[[listener]]\naddress = \"5000\"", "line 2: listener[0].address: \"5000\" is not an address to listen on"),
    ("[[listener]]\naddress = \"unix:x\"", "line 2: listener[0].address: \"unix:x\" is not an address to listen on"),
    (
        "[[listener]]\naddress = \"127.0.0.1:1\"\n[[listener]]\naddress = \"127.0.0.1:1\"",
        "line 4: listener[1].address: 127.0.0.1:1 is written twice",
    ),
    (
        "[[listener]]\naddress = \"0.0.0.0:1\"\n[[listener]]\naddress = \"127.0.0.1:1\"",
        "line 4: listener[1].address: 127.0.0.1:1 cannot be had beside 0.0.0.0:1, which includes it",
    ),
    (
        "[admin]\naddress = \"127.0.0.1:5000\"",
        "line 2: admin.address: 127.0.0.1:5000 cannot be had beside 127.0.0.1:5000",
    ),
    (
        "[[listener]]\naddress = \"0.0.0.0:5080\"",
        "admin.address: 127.0.0.1:5080 cannot be had beside 0.0.0.0:5080, which includes it",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = \"auto\"",
        "line 2: upstream.\"a.b\".credentials: invalid type: string \"auto\", expected a table; write one, such as { from = \"auto\" }",
    ),
    (
        "[[listener]]\ntls = true",
        "line 2: listener[0].tls: invalid type: boolean `true`, expected a table; write one, such as { certificate = \"FILE\",",
    ),
    (
        "[upstream]\n\"docker.io\" = \"https://a.b\"",
        "line 2: upstream.\"docker.io\": invalid type: string \"https://a.b\", expected a table; write [upstream.\"docker.io\"] and below \
         it the keys, such as url",
    ),
    (
        "[pin]\nupstream = \"docker.io\"",
        "line 1: pin: invalid type: map, expected a sequence; write [[pin]] with two brackets",
    ),
    ("pin = [\"a\"]", "line 1: pin[0]: invalid type: string \"a\", expected a table; write [[pin]] with two brackets"),
    (
        "[[listener]]\ndefault_upstream = \"ghcr.oi\"",
        "line 2: listener[0].default_upstream: no upstream is called \"ghcr.oi\"; did you mean ghcr.io?; add a table \
             [upstream.\"ghcr.oi\"]",
    ),
    (
        "[[listener]]\nhostnames = { \"x.y\" = \"z.example\" }",
        "line 2: listener[0].hostnames.\"x.y\": no upstream is called \"z.example\"; add a table",
    ),
    (
        "[[listener]]\nhostnames = { \"https://x\" = \"ghcr.io\" }",
        "line 2: listener[0].hostnames.\"https://x\": \"https://x\" is not a host name",
    ),
    (
        "[[listener]]\npublic_url = \"cache\"",
        "line 2: listener[0].public_url: \"cache\" is not the URL that clients see",
    ),
    ("[[listener]]\ntls = { key = \"k\" }", "line 2: listener[0].tls: missing: tls needs both"),
    ("[[listener]]\ntls = {}", "line 2: listener[0].tls: missing: tls needs both"),
    (
        "[[listener]]\ntls = { certificates = [] }",
        "line 2: listener[0].tls.certificates: missing: at least one certificate, such as",
    ),
    (
        "[[listener]]\ntls = { certificates = [{ certificate = \"c\", key = \"k\" }, { key = \"k\" }] }",
        "line 2: listener[0].tls.certificates[1]: missing: tls needs both",
    ),
    (
        "[[listener]]\ntls = { certificate = \"c\", certificates = [{ certificate = \"c\", key = \"k\" }] }",
        "line 2: listener[0].tls.certificates: certificate and key are for a single certificate",
    ),
    (
        "[[listener]]\ntls = { certificates = [{ cert = \"c\" }] }",
        "line 2: listener[0].tls.certificates[0].cert: unknown key; did you mean \
         listener[0].tls.certificates[0].certificate?",
    ),
    (
        "[[listener]]\ntls = { certificates = [\"c.pem\"] }",
        "line 2: listener[0].tls.certificates[0]: invalid type: string",
    ),
    (
        "[[listener]]\ntls = { certificates = \"c.pem\" }",
        "line 2: listener[0].tls.certificates: invalid type: string \"c.pem\", expected a sequence; write a list",
    ),
    ("[upstream.\"a.b\"]\npush = \"shared\"", "line 2: upstream.\"a.b\".push: \"shared\" is for an account"),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"auto\" }\npush = \"shared\"",
        "line 3: upstream.\"a.b\".push: \"shared\" is for an account of ocistern's own",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"client\" }\npush = \"shared\"",
        "line 3: upstream.\"a.b\".push: \"shared\" is for an account of ocistern's own",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"helper\" }\npush = \"shared\"",
        "line 2: upstream.\"a.b\".credentials: missing: name",
    ),
    ("[upstream.\"a.b\"]\nurl = \"https://u:hunter2@x\"", "line 2: upstream.\"a.b\".url: a URL must not carry"),
    (
        "[upstream.\"a.b\"]\nurl = \"https://x?y\"",
        "line 2: upstream.\"a.b\".url: \"https://x?y\" is not a registry's URL",
    ),
    ("[upstream.\"a b\"]", "line 1: upstream.\"a b\": \"a b\" is not a name for an upstream"),
    ("[upstream.\"a.b\"]\n[upstream.\"A.b\"]", "line 1: upstream.\"a.b\": \"a.b\" is the same upstream as another one"),
    (
        "[upstream.\"a:1\"]\n[upstream.a-1]\nurl = \"http://a\"",
        "line 1: upstream.\"a:1\": \"a:1\" is the same upstream as another one",
    ),
    ("[upstream.\"a.b\"]\ntags = 300", "line 2: upstream.\"a.b\".tags: \"300\" is not a time for tags"),
    ("[upstream.\"a.b\"]\nlibrary = \"yes\"", "line 2: upstream.\"a.b\".library: \"yes\" is not true or false"),
    (
        "[upstream.\"a.b\"]\ntoken_hosts = [\"ok\", \"https://x\"]",
        "line 2: upstream.\"a.b\".token_hosts[1]: \"https://x\" is not a host name",
    ),
    (
        "[upstream.\"a.b\"]\nconnect = [\"10.0.0.7\"]",
        "line 2: upstream.\"a.b\".connect[0]: \"10.0.0.7\" is not an address to dial",
    ),
    ("[upstream.\"a.b\"]\ncredentials = {}", "line 2: upstream.\"a.b\".credentials: missing: from"),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"magic\" }",
        "line 2: upstream.\"a.b\".credentials.from: \"magic\" is not a source of credentials",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"static\", username = \"u\" }",
        "line 2: upstream.\"a.b\".credentials: missing: password_file",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"static\", password_file = \"u\" }",
        "line 2: upstream.\"a.b\".credentials: missing: username",
    ),
    ("[upstream.\"a.b\"]\ncredentials = { from = \"helper\" }", "line 2: upstream.\"a.b\".credentials: missing: name"),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"helper\", name = \"docker-credential-pass\" }",
        "line 2: upstream.\"a.b\".credentials.name: \"docker-credential-pass\" is not the name of a credential helper",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"azure\", client_id = \"i\", secret_file = \"s\" }",
        "line 2: upstream.\"a.b\".credentials: missing: tenant",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"azure\", tenant = \"../x\", client_id = \"i\", secret_file = \"s\" }",
        "line 2: upstream.\"a.b\".credentials.tenant: \"../x\" is not a tenant",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"azure\", tenant = \"t\", client_id = \"i\", client_secret = \"hunter2\" }",
        "line 2: upstream.\"a.b\".credentials.client_secret: passwords are not written here",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"azure\", tenant = \"t\", client_id = \"i\", secret_file = \"s\", authority = \"https://u:hunter2@x\" }",
        "line 2: upstream.\"a.b\".credentials.authority: a URL must not carry a user or password",
    ),
    ("[upstream.\"a.b\"]\ncredentials = { from = \"ecr\" }", "line 2: upstream.\"a.b\".credentials: missing: region"),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"ecr\", region = \"Frankfurt\" }",
        "line 2: upstream.\"a.b\".credentials.region: \"Frankfurt\" is not a region",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"ecr\", region = \"eu-west-1\", access_key_id = \"AKIA\" }",
        "line 2: upstream.\"a.b\".credentials: access_key_id and secret_file are written both, or neither",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"ecr\", region = \"eu-west-1\", session_token_file = \"t\" }",
        "line 2: upstream.\"a.b\".credentials: session_token_file belongs to",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"static\", username = \"u\", password_file = \"p\", secret_file = \"s\" }",
        "line 2: upstream.\"a.b\".credentials: secret_file has a meaning only with",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"anonymous\", username = \"u\" }",
        "line 2: upstream.\"a.b\".credentials: username and password_file have a meaning only with",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"auto\", path = \"u\" }",
        "line 2: upstream.\"a.b\".credentials: path has a meaning only with",
    ),
    (
        "[upstream.\"a.b\"]\ncredentials = { from = \"auto\", name = \"u\" }",
        "line 2: upstream.\"a.b\".credentials: name has a meaning only with",
    ),
    ("[[upstream.\"a.b\".rule]]\ntag = \"x\"", "line 1: upstream.\"a.b\".rule[0]: missing: tags"),
    (
        "[[upstream.\"a.b\".rule]]\ntag = \"a/b\"\ntags = \"5m\"",
        "line 2: upstream.\"a.b\".rule[0].tag: \"a/b\" is not a pattern of tags",
    ),
    (
        "[[upstream.\"a.b\".rule]]\nrepository = \"A/b\"\ntags = \"5m\"",
        "line 2: upstream.\"a.b\".rule[0].repository: \"A/b\" is not a pattern of repositories",
    ),
    (
        "[[upstream.\"docker.io\".rule]]\nrepository = \"alp*\"\ntags = \"5m\"",
        "line 2: upstream.\"docker.io\".rule[0].repository: \"alp*\" matches nothing",
    ),
    (
        "[upstream.\"a.b\"]\nconnect = [\"u:hunter2@x:443\"]",
        "line 2: upstream.\"a.b\".connect[0]: \"…@x:443\" is not an address to dial",
    ),
    // Transfers.
    (
        "[store]\nrange_fill = \"100%\"",
        "line 2: store.range_fill: \"100%\" is not what a request for a part brings: write",
    ),
    ("[store]\nrange_fill = true", "line 2: store.range_fill: \"true\" is not what a request for a part brings"),
    ("[store]\nunverified_ranges = \"no\"", "line 2: store.unverified_ranges: \"no\" is not what becomes of a part"),
    (
        "[store]\nrange_fill = \"25%\"\nunverified_ranges = \"wait\"",
        "line 3: store.unverified_ranges: \"wait\" is for blobs that are downloaded as a whole",
    ),
    ("[store]\nabandon = \"stop\"", "line 2: store.abandon: \"stop\" is not what becomes of a download"),
    (
        "[limits]\nmax_rate = \"20\"",
        "line 2: limits.max_rate: \"20\" is not a rate: write a size with its unit for each second",
    ),
    ("[limits]\nschedule = \"22-6\"", "line 2: limits.schedule: \"22-6\" is not hours of the day"),
    (
        "[limits]\nschedule = \"22:00-06:00\"",
        "line 2: limits.schedule: these are the hours in which max_rate does not hold, and there is none",
    ),
    ("[upstream.\"a.b\"]\nstall = \"500ms\"", "line 2: upstream.\"a.b\".stall: \"500ms\" is not a time of silence"),
    ("[upstream.\"a.b\"]\nstall = \"11m\"", "line 2: upstream.\"a.b\".stall: \"11m\" is not a time of silence"),
    ("[upstream.\"a.b\"]\nmin_rate = \"slow\"", "line 2: upstream.\"a.b\".min_rate: \"slow\" is not a size"),
    (
        "[upstream.\"a.b\"]\nresume_for = \"2d\"",
        "line 2: upstream.\"a.b\".resume_for: \"2d\" is not a time to try again",
    ),
    (
        "[upstream.\"a.b\"]\nblob_connections = 0",
        "line 2: upstream.\"a.b\".blob_connections: \"0\" is not a number of requests for one blob",
    ),
    (
        "[upstream.\"a.b\"]\nblob_connections = 65",
        "line 2: upstream.\"a.b\".blob_connections: \"65\" is not a number of requests for one blob",
    ),
    (
        "[upstream.\"a.b\"]\nmax_connections = 0",
        "line 2: upstream.\"a.b\".max_connections: \"0\" is not a number of requests at once",
    ),
    ("[upstream.\"a.b\"]\nmax_rate = \"0MiB\"", "line 2: upstream.\"a.b\".max_rate: \"0MiB\" is not a rate"),
    (
        "[upstream.\"a.b\"]\nmax_rate = 5\nschedule = \"22:00-06:00\"",
        "line 2: upstream.\"a.b\".max_rate: \"5\" is not a rate: write a size with its unit for each second, such as \"20MiB\", or \"off\" for no limit",
    ),
    (
        "[upstream.\"a.b\"]\nschedule = \"22:00-06:00\"",
        "line 2: upstream.\"a.b\".schedule: these are the hours in which max_rate does not hold, and there is none",
    ),
    (
        "[upstream.\"a.b\"]\nmirrors = \"https://x\"",
        "line 2: upstream.\"a.b\".mirrors: invalid type: string \"https://x\", expected a sequence; write a list, such as [\"https://mirror.example\"]",
    ),
    (
        "[upstream.\"a.b\"]\nmirrors = [\"https://x\", \"https://u:hunter2@x\"]",
        "line 2: upstream.\"a.b\".mirrors[1]: a URL must not carry",
    ),
    (
        "[upstream.\"a.b\"]\nmirrors = [\"https://x?y\"]",
        "line 2: upstream.\"a.b\".mirrors[0]: \"https://x?y\" is not a registry's URL",
    ),
    (
        "[upstream.\"a.b\"]\nmirrors = [\"https://x\", \"https://X/v2/\"]",
        "line 2: upstream.\"a.b\".mirrors[1]: https://x is where this upstream is asked already",
    ),
    (
        "[upstream.\"docker.io\"]\nmirrors = [\"https://index.docker.io\"]",
        "line 2: upstream.\"docker.io\".mirrors[0]: https://registry-1.docker.io is where this upstream is asked already",
    ),
    (
        "[upstream.\"a.b\"]\nmirrors = [\"http://127.0.0.1:5000\"]",
        "line 2: upstream.\"a.b\".mirrors[0]: 127.0.0.1:5000 is an address that ocistern itself listens on",
    ),
    // Asking itself.
    (
        "[upstream.mine]\nurl = \"http://localhost:5000\"",
        "line 1: upstream.mine: localhost:5000 is an address that ocistern itself listens on",
    ),
    (
        "[[listener]]\naddress = \"0.0.0.0:443\"\n[upstream.\"a.b\"]\nconnect = [\"127.0.0.1:443\"]",
        "line 3: upstream.\"a.b\": 127.0.0.1:443 is an address that ocistern itself listens on",
    ),
];

#[test]
fn each_mistake_has_its_answer() {
    for (text, expected) in MISTAKES {
        let answer = Config::from_toml(text).expect_err(text).to_string();
        assert!(answer.starts_with(expected), "{text}\n  is answered with\n{answer}\n  and not with\n{expected}");
        assert!(!answer.contains("hunter2"), "a secret is repeated: {answer}");
    }
}
