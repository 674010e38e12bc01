# registry_health_check: checks of one upstream's namespace that are not those of the zone.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $INTERVAL);
my %probed = map { $_ => RegistryTest->probed } qw(zone own off same dynamic alone elsewhere);
my $own = check('uri=/own', 'fails=1', 'passes=1', 'status=200,503');
$node = RegistryTest->nginx(
    workers => 2,
    http => 'registry main 512k { heartbeat_ttl 0; health_check ' . check('uri=/zone', 'fails=1', 'passes=1') . "; }
        registry bare 512k { heartbeat_ttl 0; }
        upstream zone { registry main; }
        upstream own { registry main; registry_health_check $own; }
        upstream again { registry main namespace=own; registry_health_check $own; }
        upstream off { registry_health_check off; registry main; }
        upstream same { registry main; server ${\ $probed{same}->address}; registry_health_check ${\ check('uri=/same', 'initial=down')}; }
        map \$arg_ns \$ns { default \$arg_ns; }
        upstream chosen { registry main namespace=\$ns; }
        upstream alone { registry bare; registry_health_check ${\ check('uri=/alone', 'fails=1', 'passes=1')}; }
        upstream elsewhere { registry bare; }",
    server => 'location /main/ { registry_api main; } location /bare/ { registry_api bare; }
        ' . join('', map { "location /to/$_ { proxy_pass http://$_/; }\n" } qw(zone own again off same chosen alone elsewhere)),
);
sub add {
    my ($registry, $ns) = @_;
    my $r = $node->post("/$registry/add", body => form({ ns => $ns, host => '127.0.0.1', port => $probed{$ns}->port }));
    is($r->{status}, 200, "$ns: added");
    return;
}
sub view {
    my ($registry, $ns) = @_;
    local $node->{api} = "/$registry/";
    return servers($node, $ns)->{ $probed{$ns}->address };
}
sub line { my ($ns) = @_; my ($last) = reverse grep { $_->{line} } $probed{$ns}->log; return $last ? $last->{line} : 'nobody asked' }
sub asked { my ($ns, $path) = @_; return wait_until(sub { line($ns) eq "GET $path HTTP/1.1" }) }

add(main => $_) for qw(zone own off dynamic);
add(bare => $_) for qw(alone elsewhere);
ok(asked('zone', '/zone'), 'what the zone says') or diag(line('zone'));
ok(asked('own', '/own'), 'what the upstream says') or diag(line('own'));
ok(asked('same', '/same'), 'also of server lines') or diag(line('same'));
ok(asked('dynamic', '/zone'), 'a namespace without an upstream has the checks of the zone') or diag(line('dynamic'));
ok(asked('alone', '/alone'), 'an upstream alone has checks') or diag(line('alone'));
sleep 3 * $INTERVAL;
is($probed{$_}->count, 0, "$_: none") for qw(off elsewhere);
is(view(main => 'off')->{health}, undef, 'and status says so');
is(view(bare => 'elsewhere')->{health}, undef, 'for both');
ok(view(bare => 'alone')->{health}{checks}, 'the others have some');
is($probed{$_}->most_at_once, 1, "$_: one at a time") for qw(zone own same dynamic alone);

subtest 'each by its own rules' => sub {
    $_->behave('status 503') for values %probed;
    ok(wait_until(sub { view(main => 'zone')->{state} eq 'unhealthy' }), 'a status that the zone does not take');
    my $checks = view(main => 'own')->{health}{checks};
    ok(wait_until(sub { view(main => 'own')->{health}{checks} > $checks + 2 }), 'and the upstream does');
    is(view(main => 'own')->{state}, 'up', 'so there it is up');
    is($node->get("/to/$_")->{status}, 503, "$_: and gets requests") for qw(own again off elsewhere);
    is($node->get("/to/$_")->{status}, 502, "$_: it does not") for qw(zone);
    ok(wait_until(sub { view(main => 'dynamic')->{state} eq 'unhealthy' }), 'the namespace without an upstream');
    is($node->get('/to/chosen?ns=dynamic')->{status}, 502, 'is left out where a variable names it');
    ok(wait_until(sub { view(main => 'same')->{state} eq 'unhealthy' }), 'the server line');
    $_->behave('ok') for values %probed;
    ok(wait_until(sub { view(main => 'same')->{state} eq 'up' }), 'each recovers');
    ok(wait_until(sub { view(main => 'dynamic')->{state} eq 'up' }), 'by itself');
    is($node->get('/to/chosen?ns=dynamic')->{status}, 200, 'and gets requests');
};

subtest 'a namespace that comes later, and goes' => sub {
    my $probed = RegistryTest->probed;
    for my $round (1, 2) {
        my %server = (ns => 'later', host => '127.0.0.1', port => $probed->port);
        my $from = $probed->count;
        is($node->post('/main/add', body => form(\%server))->{status}, 200, 'its first server');
        ok(wait_until(sub { my @log = $probed->log($from); @log && ($log[0]{line} || '') eq 'GET /zone HTTP/1.1' }), 'is checked as the zone says');
        is($node->post('/main/remove', body => form(\%server))->{status}, 200, 'its last one goes');
        ok(wait_until(sub { !grep { !$_->{ended} } $probed->log }), 'what was under way ends');
        my $count = $probed->count;
        sleep 3 * $INTERVAL;
        is($probed->count, $count, 'and nobody asks any more');
    }
};

$node->log_is_clean;
done_testing;
