# The warning at start: once for each registry that has neither api_token nor allow_servers, and an API
# that changes servers at an address other than loopback.

use lib 't/lib';
use RegistryTest;

my $node = RegistryTest->nginx(start => 0, server => undef, workers => 1);
my $file = $node->conf_file;

my $REGISTRY = "registry main 128k { }\nupstream backend { registry main; }\n";
my $API = 'location /upstream/ { registry_api main; }';

sub server {
    my ($listen, $locations) = @_;
    return 'server { ' . join(' ', map { "listen $_;" } ref $listen ? @$listen : $listen) . ' ' . ($locations || $API) . " }\n";
}

sub warnings { my ($text) = @_; return map { s/.*?\[warn\] (?:\d+#\d+: )?//r } grep { /\[warn\]/ } split /\n/, $text }

# "address main" for each registry that a warning is expected for.
sub doors {
    my ($name, $http, @expected) = @_;
    $node->set_conf(http => $http);
    my ($code, $said) = $node->test_conf;
    is($code, 0, "$name: a valid configuration") or diag($said);
    my $conf = $node->conf_text;
    my @lines = map {
        my ($address, $registry) = split / /;
        my ($before) = $conf =~ /\A(.*?)^\s*registry $registry /ms;
        my $line = 1 + ($before =~ tr/\n//);
        qq(registry "$registry": whoever reaches $address can register servers, unless access is denied there: )
            . "set api_token or allow_servers in $file:$line";
    } @expected;
    is_deeply([ warnings($said) ], \@lines, @expected ? "$name: warned of" : "$name: no warning");
    return;
}

my ($port, $other) = ($node->port('one'), $node->port('two'));

# Where it listens.
doors('all addresses', $REGISTRY . server($port), "0.0.0.0:$port main");
doors('all addresses of IPv6', $REGISTRY . server("[::]:$port"), "[::]:$port main");
doors('loopback', $REGISTRY . server("127.0.0.1:$port"));
doors('another address of loopback', $REGISTRY . server("127.9.9.9:$port"));
doors('loopback of IPv6', $REGISTRY . server("[::1]:$port"));
doors('localhost', $REGISTRY . server("localhost:$port"));
doors('a unix socket', $REGISTRY . server("unix:%%DIR%%/socket"));
doors('loopback and a unix socket', $REGISTRY . server([ "127.0.0.1:$port", "[::1]:$port", "unix:%%DIR%%/socket" ]));
doors('loopback and elsewhere', $REGISTRY . server([ "127.0.0.1:$port", "$other" ]), "0.0.0.0:$other main");

# Which server.
doors('another server listens elsewhere', $REGISTRY . server("127.0.0.1:$port") . server($other, 'location / { return 204; }'));
doors('another server of the same port', $REGISTRY . server("127.0.0.1:$port") . server($port, 'location / { return 204; }'));
doors('another name at the same address', $REGISTRY . server($port, 'location / { return 204; }')
    . server($port, "server_name registry.test; $API"), "0.0.0.0:$port main");

# Which locations.
doors('read_only', $REGISTRY . server($port, 'location /upstream/ { registry_api main read_only; }'));
doors('read_only for all, the rest on loopback', $REGISTRY . server($port, 'location /upstream/ { registry_api main read_only; }')
    . server("127.0.0.1:$other"));
doors('read_only beside one that is not',
    $REGISTRY . server($port, 'location /upstream/ { registry_api main read_only; } location = /upstream/add { registry_api main; }'),
    "0.0.0.0:$port main");
doors('no API', $REGISTRY . server($port, 'location / { proxy_pass http://backend; }'));
doors('an inner location', $REGISTRY . server($port, "location / { $API }"), "0.0.0.0:$port main");
doors('in a limit_except', $REGISTRY
    . server($port, 'location /upstream/ { registry_api main; limit_except GET { allow 127.0.0.1; deny all; } }'), "0.0.0.0:$port main");
doors('allow and deny, which it does not know about', $REGISTRY
    . server($port, 'allow 127.0.0.1; deny all; ' . $API), "0.0.0.0:$port main");

# How often.
doors('many locations, servers and addresses: one warning', $REGISTRY . server([ $port, "[::]:$port", $other ],
    join ' ', map { "location /$_/ { registry_api main; }" } 1 .. 5) . server($node->port('three')), "0.0.0.0:$port main");
doors('two registries: one each', $REGISTRY . "registry other 128k { }\nupstream o { registry other; }\n"
    . server($port, "$API location /other/ { registry_api other; }"), "0.0.0.0:$port main", "0.0.0.0:$port other");
doors('two registries, one of them open', $REGISTRY . "registry other 128k { api_token t; }\nupstream o { registry other; }\n"
    . server($port, "$API location /other/ { registry_api other; }"), "0.0.0.0:$port main");
doors('a registry that no location opens', $REGISTRY . "registry other 128k { }\nupstream o { registry other; }\n"
    . server("127.0.0.1:$port", "$API") . server($other, 'location /other/ { registry_api other; }'), "0.0.0.0:$other other");

# With one of the two.
for my $line ('api_token t', 'allow_servers 10.0.0.0/8', 'api_token t; allow_servers ::/0') {
    doors($line, "registry main 128k { $line; }\nupstream backend { registry main; }\n" . server($port));
}

# At start and at a reload it is a line of the log.
{
    $node->set_conf(http => $REGISTRY . server($port));
    $node->start;
    is(scalar(warnings($node->error_log)), 1, 'one line when nginx starts');
    my $from = $node->log_size;
    ok($node->reload, 'a reload');
    is(scalar(warnings($node->error_log($from))), 1, 'one line more');
    $from = $node->log_size;
    $node->set_conf(http => "registry main 128k { api_token t; }\nupstream backend { registry main; }\n" . server($port));
    ok($node->reload, 'a reload with a token');
    is(scalar(warnings($node->error_log($from))), 0, 'no line');
}

$node->log_is_clean;
done_testing;
