# $registry_server, $registry_namespace, $registry_tries and $registry_last_failure, in headers and in
# the access log.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my %backend = (
    good   => RegistryTest->backend(name => 'good'),
    s403   => RegistryTest->backend(name => 's403', status => 403),
    s503   => RegistryTest->backend(name => 's503', status => 503),
    closes => RegistryTest->backend(name => 'closes', close => 1),
    hangs  => RegistryTest->backend(name => 'hangs', hang => 1),
);
my %name = map { $backend{$_}->address => $_ } keys %backend;

# name => [ servers in the order in which the first request tries them, what is seen ]
my %scenarios = (
    well       => [ [qw(good)],                  'good well 1 -' ],
    next       => [ [qw(s403 good)],             'good next 2 next 403' ],
    failed     => [ [qw(closes good)],           'good failed 2 failed 502' ],
    status     => [ [qw(s503 good)],             'good status 2 failed 503' ],
    timeout    => [ [qw(hangs good)],            'good timeout 2 failed 504' ],
    the_last   => [ [qw(s403 closes good)],      'good the_last 3 failed 502' ],
    all_fail   => [ [qw(hangs closes)],          'closes all_fail 2 failed 502' ],
    passed_on  => [ [qw(closes s503)],           's503 passed_on 2 failed 502' ],
    only       => [ [qw(s503)],                  's503 only 1 -' ],
    nobody     => [ [],                          '- nobody 0 -' ],
);

my $header = 'X-Registry "$registry_server|$registry_namespace|$registry_tries|$registry_last_failure"';
my ($http, $server) = ('registry main 256k { }', '');
for my $name (sort keys %scenarios) {
    my $servers = join ' ', map { 'server ' . $backend{$_}->address . ';' } @{ $scenarios{$name}[0] };
    $http .= "upstream $name { registry main; registry_balance round_robin; $servers }\n"
        . "upstream pool_$name { registry main namespace=$name; registry_balance round_robin; keepalive 4; }\n";
    $server .= "location = /$name { proxy_pass http://$name; }\n";
}
$http .= 'upstream named { registry main namespace=$arg_ns; }'
    . 'upstream pooled { registry main namespace=well; keepalive 4; } upstream ours { registry main namespace=well; registry_keepalive 4; }'
    . 'upstream stock { server ' . $backend{good}->address . '; }'
    . 'log_format registry "$uri $registry_server|$registry_namespace|$registry_tries|$registry_last_failure";'
    . 'access_log %%DIR%%/logs/registry.log registry;';
my $node = RegistryTest->nginx(
    workers => 1,
    http => $http,
    server => qq{
        location /upstream/ { registry_api main; }
        proxy_next_upstream error timeout http_503 http_403;
        proxy_read_timeout 300ms;
        add_header $header always;
        location = /named  { proxy_pass http://named; }
        location = /pooled { proxy_pass http://pooled; proxy_http_version 1.1; proxy_set_header Connection ""; }
        location = /ours   { proxy_pass http://ours; proxy_http_version 1.1; proxy_set_header Connection ""; }
        location = /stock  { proxy_pass http://stock; }
        location = /plain  { return 200; }
        location = /page   { proxy_pass http://nobody; error_page 502 = /sorry; }
        location = /again  { proxy_pass http://all_fail; error_page 502 504 = \@other; }
        location \@other   { proxy_pass http://well; }
        location = /apart  { proxy_pass http://all_fail; error_page 502 504 = \@plain; }
        location \@plain   { proxy_pass http://stock; }
        location = /sorry  { return 200 sorry; }
        location = /checked { auth_request /well; proxy_pass http://only; }
        $server
    },
);

# "server namespace tries last-failure", the server by its name, "-" for nothing.
sub words {
    my ($text) = @_;
    my @values = split /\|/, $text, -1;
    $values[0] = $name{ $values[0] } if $name{ $values[0] };
    return join ' ', map { length $_ ? $_ : '-' } @values;
}

sub seen { my ($r) = @_; return words($r->{headers}{'x-registry'} // '|||') }

# What the log has of the last request to a path.
sub logged {
    my ($path) = @_;
    my @lines;
    wait_until(sub { @lines = grep { /^\Q$path\E / } split /\n/, slurp($node->dir . '/logs/registry.log') })
        or return 'no line';
    return words(substr $lines[-1], 1 + length $path);
}

for my $name (sort keys %scenarios) {
    my $expected = $scenarios{$name}[1];
    is(seen($node->get("/$name")), $expected, "$name: a header");
    is(logged("/$name"), $expected, "$name: the log");
}

for my $path (qw(pooled ours)) {
    is(seen($node->get("/$path")), 'good well 1 -', "$path, a new connection") for 1;
    is(seen($node->get("/$path")), 'good well 1 -', "$path, a kept one");
}

subtest 'a namespace that is evaluated' => sub {
    is(seen($node->get('/named?ns=well')), 'good well 1 -', 'its name');
    is(seen($node->get('/named?ns=other')), '- other 0 -', 'though it does not exist');
    is(seen($node->get('/named?ns=%0d%0aX')), '- - 0 -', 'what can be no name is not told');
};

subtest 'where no registry is' => sub {
    is($node->get($_)->{headers}{'x-registry'}, '|||', "$_: nothing") for qw(/stock /plain /upstream/health?ns=well);
    $node->get('/stock');
    my @lines = grep { m{^/stock } } split /\n/, slurp($node->dir . '/logs/registry.log');
    is($lines[-1], '/stock -|-|-|-', 'and "-" in the log');
};

subtest 'after an internal redirect' => sub {
    is(seen($node->get('/page')), '- nobody 0 -', 'to a page: what came before');
    api($node, 'reset', { ns => 'all_fail' });
    is(seen($node->get('/again')), 'good well 1 -', 'to another registry upstream: what it did');
    api($node, 'reset', { ns => 'all_fail' });
    like(seen($node->get('/apart')), qr/^(?:hangs|closes) all_fail 2 failed 50[24]$/, 'to a stock one: what came before');
};

is(seen($node->get('/checked')), 's503 only 1 -', 'a subrequest has its own');

subtest 'a client that goes away' => sub {
    api($node, 'reset', { ns => 'timeout' });
    my $lines = () = slurp($node->dir . '/logs/registry.log') =~ m{^/timeout }mg;
    my $client = $node->client;
    $client->send("GET /timeout HTTP/1.1\r\nHost: x\r\n\r\n");
    $client->close;
    ok(wait_until(sub { (() = slurp($node->dir . '/logs/registry.log') =~ m{^/timeout }mg) > $lines }), 'is logged');
    like(logged('/timeout'), qr/^\w+ timeout [12] /, 'with what was tried');
};

$node->log_is_clean;
done_testing;
