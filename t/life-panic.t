# panic_threshold: when most servers are out at once requests go on to all of them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/life.pl";

my $TTL = 1 * time_scale();
my $ttl = 1000 * $TTL . 'ms';
my %REGISTRIES = (
    disables => "heartbeat_ttl $ttl; cleanup_interval 50ms; panic_threshold 50%;",
    removes  => "heartbeat_ttl $ttl; cleanup_interval 1h; on_expire remove; panic_threshold 50%;",
    few      => "heartbeat_ttl $ttl; cleanup_interval 50ms; panic_threshold 50%;",
    off      => "heartbeat_ttl $ttl; cleanup_interval 50ms; panic_threshold 0;",
);
our $node = RegistryTest->nginx(
    workers => 2,
    http => join('', map { "registry $_ 256k { $REGISTRIES{$_} } upstream $_ { registry $_; registry_keepalive 8; }\n" } sort keys %REGISTRIES),
    server => 'proxy_http_version 1.1; proxy_set_header Connection "";' . join('', map {
        "location /$_/ { registry_api $_; } location /to/$_ { proxy_pass http://$_/; }\n"
    } sort keys %REGISTRIES),
);
my @backends = map { RegistryTest->backend(name => $_) } qw(a b c d e);
my ($a, $b) = @backends;

sub lines { my ($registry, $which) = @_; return scalar $node->grep_log(qr/registry "$registry": .*\Q$which\E/) }
my ($BEGINS, $ENDS) = ('more than panic_threshold, requests go to all', 'no more than panic_threshold, requests go to the others');
sub begun { return lines($_[0], ": $BEGINS") }
sub ended { return lines($_[0], ": $ENDS") }
sub states { my ($registry) = @_; local $node->{api} = "/$registry/"; return join ' ', sort map { "$_->{state}-" . ($_->{enabled} ? 'on' : 'off') } values %{ servers($node) } }

subtest 'heartbeats stop: requests go on' => sub {
    call('disables', add => $_) for @backends;
    is(answers('disables', 10), 'a b c d e', 'all take requests');
    my $load = load_start(conns => 2, url => $node->url('/to/disables'));
    ok(wait_until(sub { begun('disables') }, 5 * $TTL), 'it is said when nobody is heard of any more');
    is(answers('disables', 50), 'a b c d e', 'all go on to take requests');
    # Whom the timer found before the others fell silent is switched off, and takes requests too.
    my $then = states('disables');
    like($then, qr/^(?:expired-off ?){0,2}(?:expired-on ?){3,5}$/, 'more than half are silent');
    sleep 0.3 * time_scale();
    is(states('disables'), $then, 'the timer switches nobody off any more');
    my $counts = load_stop($load);
    is_deeply($counts->{status}, { 200 => $counts->{requests} }, "not one request of $counts->{requests} failed");
    is($node->get('/disables/health')->{json}{status}, 'healthy', 'health knows that requests are served');
    is($node->get('/disables/health?ready')->{status}, 200, 'and is ready');
    is(begun('disables'), 1, 'it was said once');
    is(ended('disables'), 0, 'and has not ended');
};

subtest 'it ends by itself' => sub {
    call('disables', refresh => $_) for @backends[0 .. 1];
    is(answers('disables', 10), 'a b c d e', 'two of five are back: it lasts');
    my $until = time + 0.8 * $TTL;
    call('disables', refresh => $_) for @backends[0 .. 2];
    ok(wait_until(sub { ended('disables') }), 'three are: it ends');
    is(answers('disables', 10), 'a b c', 'and the others get nothing') if time < $until;
    is(ended('disables'), 1, 'which is said once');
};

subtest 'nobody is forgotten, not even at once' => sub {
    call('removes', add => $_) for @backends;
    sleep 1.1 * $TTL;
    my $data = $node->post('/removes/cleanup')->{json}{data};
    is("$data->{expired_count} $data->{removed_count}", '5 0', 'a cleanup finds all expired and removes none');
    is(answers('removes', 10), 'a b c d e', 'all take requests');
    call('removes', toggle => $_, action => 'disable') for @backends[3 .. 4];
    is(answers('removes', 10), '502', 'three that are not switched off by hand are too few to tell');
    is($node->post('/removes/cleanup')->{json}{data}{removed_count}, 3, 'and go');
};

for my $case ([ few => 3, 'three servers are no sample' ], [ off => 5, '0: off' ]) {
    my ($registry, $count, $what) = @$case;
    subtest $what => sub {
        call($registry, add => $_) for @backends[0 .. $count - 1];
        ok(wait_until(sub { states($registry) eq join ' ', ('expired-off') x $count }, 5 * $TTL), 'all are switched off when they fall silent');
        is(answers($registry, 2), '502', 'nobody takes requests');
        is(begun($registry), 0, 'nothing is said');
    };
}

subtest 'over a reload' => sub {
    my $begun = begun('disables');
    call('disables', refresh => $_) for @backends;
    ok(wait_until(sub { begun('disables') > $begun }, 5 * $TTL), 'it begins again');
    ok($node->reload, 'a reload');
    is(answers('disables', 10), 'a b c d e', 'that does not end it');
    is(begun('disables'), $begun + 1, 'nothing is said');
    (my $http = $node->{http}) =~ s/panic_threshold 50%;/panic_threshold off;/g;
    $node->set_conf(http => $http);
    ok($node->reload, 'one that switches it off');
    ok(wait_until(sub { states('disables') =~ /^(?:expired-off ?)+$/ }), 'does: the timer goes on with its work');
    is(answers('disables', 4), '502', 'and nobody takes requests');
    is(ended('disables'), $begun + 1, 'which is said');
};

$node->log_is_clean;
done_testing;
