# Passive failure: max_fails and fail_timeout, exactly as in stock nginx. Each scenario is
# run twice, with an upstream of a registry and with a stock one of the same servers.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

# What goes wrong with a server, and whether that is a failure. The other server of
# each upstream answers well.
my %backend = (
    good    => RegistryTest->backend(name => 'good'),
    closes  => RegistryTest->backend(name => 'closes', close => 1),
    resets  => RegistryTest->backend(name => 'resets', reset => 1),
    hangs   => RegistryTest->backend(name => 'hangs', hang => 1),
    invalid => RegistryTest->backend(name => 'invalid', header => "Bad\0Name: x"),
    refuses => RegistryTest->backend(name => 'refuses', start => 0),
    flaky   => RegistryTest->backend(name => 'flaky'),
);
my @failures = qw(refuses closes resets hangs invalid 500 502 503 504 429);
my @no_failures = qw(403 404);
my @statuses = grep { /^\d/ } @failures, @no_failures;

# server lines by upstream; %%NAME%% is an address.
my %upstreams = (
    (map { ("is_$_" => "server %%$_%%; server %%good%%;") } @failures, @no_failures),
    passed_on      => 'server %%500%%; server %%good%%;',
    only           => 'server %%503%%;',
    only_refuses   => 'server %%refuses%%;',
    only_hangs     => 'server %%hangs%%;',
    with_down      => 'server %%503%%; server %%good%% down;',
    with_backup    => 'server %%503%%; server %%good%% backup;',
    backup_fails   => 'server %%closes%%; server %%refuses%% backup;',
    three          => 'server %%503%% max_fails=3; server %%good%%;',
    zero           => 'server %%503%% max_fails=0; server %%good%%;',
    all            => 'server %%closes%% max_fails=2; server %%resets%%;',
    probed         => 'server %%flaky%% fail_timeout=1s; server %%good%%;',
    back           => 'server %%flaky%% fail_timeout=1s; server %%good%%;',
    forgiven       => 'server %%flaky%% max_fails=2 fail_timeout=1s; server %%good%%;',
    lc_fails       => 'server %%503%%; server %%good%%;',
    lc_three       => 'server %%503%% max_fails=3; server %%good%%;',
    lc_zero        => 'server %%503%% max_fails=0; server %%good%%;',
);

sub expand {
    my ($text) = @_;
    $text =~ s/%%(\w+)%%/$backend{$1} ? $backend{$1}->address : "127.0.0.1:%%PORT_s$1%%"/ge;
    return $text;
}
my ($http, $server) = ('registry main 256k { }', '');
for my $name (sort keys %upstreams) {
    my $servers = expand($upstreams{$name});
    my ($ours, $theirs) = $name =~ /^lc_/ ? ('least_conn', 'least_conn;') : ('round_robin', '');
    $http .= "upstream registry_$name { registry main namespace=$name; registry_balance $ours; $servers }\n"
        . "upstream stock_$name { $theirs $servers }\n";
    my $timeout = $name =~ /hangs/ ? 'proxy_read_timeout 200ms;' : '';
    $server .= "location /$_/$name { proxy_pass http://${_}_$name; $timeout }\n" for qw(registry stock);
}
$http .= "server { listen 127.0.0.1:%%PORT_s$_%%; return $_; }\n" for @statuses;

my $node = RegistryTest->nginx(
    workers => 1,
    http => $http,
    server => qq{
        location /upstream/ { registry_api main; }
        proxy_next_upstream error timeout invalid_header http_500 http_502 http_503 http_504 http_403 http_404 http_429;
        add_header X-Addr \$upstream_addr always;
        add_header X-Status \$upstream_status always;
        location /registry/passed_on/ { proxy_pass http://registry_passed_on; proxy_next_upstream error; }
        location /stock/passed_on/    { proxy_pass http://stock_passed_on; proxy_next_upstream error; }
        $server
    },
);
my %name = ((map { $backend{$_}->address => $_ } keys %backend), map { $node->address("s$_") => $_ } @statuses);
my @both = qw(registry stock);

# Sends so many requests. Returns what can be seen: of the answers, of the servers, of the log.
sub observe {
    my ($path, $count) = @_;
    my $from = $node->log_size;
    my (%seen, %status);
    for (1 .. $count) {
        my $r = $node->get($path);
        $status{ $r->{status} }++;
        my @tried = map { $name{$_} || 'nobody' } split /, /, $r->{headers}{'x-addr'};
        my @answers = split /, /, $r->{headers}{'x-status'};
        $seen{tries}{$_}++ for @tried;
        $seen{answers}{"$tried[$_] $answers[$_]"} = 1 for 0 .. $#tried;
    }
    my ($log) = $node->error_log($from);
    $seen{log}{"$1 $2"}++ while $log =~ /(\[\w+\]) [^*]*\*\d+ (upstream server temporarily disabled while [^,]*),/g;
    $seen{log}{"$1 $2"}++ while $log =~ /(\[\w+\]) [^*]*\*\d+ (no live upstreams while [^,]*),/g;
    return { status => \%status, %seen };
}

# Both do the same, and what they do is returned.
sub same {
    my ($name, $count, $what) = @_;
    my ($registry, $stock) = map { observe("/$_/$name", $count) } @both;
    is_deeply($registry, $stock, "$what: as stock") or diag(explain($registry), 'stock: ', explain($stock));
    return $registry;
}

for my $kind (@failures) {
    my $seen = same("is_$kind", 6, "$kind is a failure");
    is($seen->{tries}{$kind}, 1, "$kind: once is enough to be left alone");
    is_deeply($seen->{status}, { 200 => 6 }, "$kind: the other server answers");
    my ($line) = keys %{ $seen->{log} };
    like($line, qr/^\[warn\] upstream server temporarily disabled while/, "$kind: the log says so");
    is(servers($node, "is_$kind")->{ $backend{good}->address }{fails}, 0, "$kind: no failure of the other");
    my ($failed) = grep { $_->{addr} ne $backend{good}->address } values %{ servers($node, "is_$kind") };
    is($failed->{fails}, 1, "$kind: one failure is counted");
}

for my $kind (@no_failures) {
    my $seen = same("is_$kind", 6, "$kind is none");
    cmp_ok($seen->{tries}{$kind}, '>=', 3, "$kind: asked again and again");
    is_deeply($seen->{status}, { 200 => 6 }, "$kind: the other server answers in its place");
    is($seen->{log}, undef, "$kind: nothing in the log");
    my $fails = 0;
    $fails += $_->{fails} for values %{ servers($node, "is_$kind") };
    is($fails, 0, "$kind: no failure is counted");
}

subtest 'a status that proxy_next_upstream does not name is an answer' => sub {
    my $seen = same('passed_on/', 6, '500');
    is_deeply($seen->{status}, { 200 => 3, 500 => 3 }, 'the client gets it');
    is($seen->{log}, undef, 'the server stays in rotation');
};

subtest 'the only server ignores max_fails' => sub {
    for my $name (qw(only only_refuses only_hangs)) {
        my $seen = same($name, 3, $name);
        my ($server) = keys %{ $seen->{tries} };
        is_deeply($seen->{tries}, { $server => 3 }, "$name: each request reaches it, once");
        is($seen->{log}, undef, "$name: it is never disabled");
    }
    my ($server) = values %{ servers($node, 'only_refuses') };
    is($server->{fails}, 3, 'its failures are counted all the same');
    same('with_down', 4, 'one of two, of which the other is down, does not');
};

subtest 'a backup makes it two' => sub {
    my $seen = same('with_backup', 6, 'a failing primary');
    is_deeply($seen->{tries}, { 503 => 1, good => 6 }, 'it is left alone, and the backup has the requests');
};

subtest 'when the last one fails it is a 502 until fail_timeout is over' => sub {
    for my $name (qw(all backup_fails)) {
        my ($registry, $stock) = map { observe("/$_/$name", 6) } @both;
        is_deeply($registry->{status}, $stock->{status}, "$name: the status is that of stock");
        delete $_->{tries}{nobody} for $registry, $stock;
        is_deeply($registry->{tries}, $stock->{tries}, "$name: each is tried as often as with stock");
        like(join(' ', keys %{ $registry->{log} }), qr/no live upstreams/, "$name: nginx's own line");
        like(($node->grep_log(qr/registry .*in namespace "$name"/))[-1], qr/: 2 failed while/, "$name: and ours");
    }
};

subtest 'max_fails=3: after three failures' => sub {
    my $seen = same('three', 20, 'three');
    is($seen->{tries}{503}, 3, 'and no more are made');
    is($seen->{log}{'[warn] upstream server temporarily disabled while reading response header from upstream'}, 1,
        'one line, at the third');
};

subtest 'max_fails=0: never' => sub {
    my $seen = same('zero', 10, 'zero');
    cmp_ok($seen->{tries}{503}, '>=', 5, 'it goes on getting its share');
    is($seen->{log}, undef, 'nothing in the log');
};

subtest 'least_conn' => sub {
    is(same('lc_fails', 6, 'one failure')->{tries}{503}, 1, 'is enough');
    is(same('lc_three', 20, 'max_fails=3')->{tries}{503}, 3, 'takes three');
    cmp_ok(same('lc_zero', 10, 'max_fails=0')->{tries}{503}, '>=', 5, 'never');
};

# The time that a server is left alone. Stock nginx counts in whole seconds, so that its
# "longer than 1s" is anything from 1 to 2.
sub tries_of_flaky {
    my ($path) = @_;
    my $before = $backend{flaky}->stats->{requests};
    $node->get($path) for 1 .. 4;
    return $backend{flaky}->stats->{requests} - $before;
}

subtest 'after fail_timeout one request tries it again' => sub {
    $backend{flaky}->set(status => 503);
    my %failed_at;
    for my $path (map { ("/$_/probed", "/$_/back") } @both) {
        # Before the failure, so that a busy machine can only lengthen what is measured.
        $failed_at{$path} = time;
        is(tries_of_flaky($path), 1, "$path: a failure, and it is left alone");
    }
    for my $path (map { "/$_/forgiven" } @both) {
        my $before = $backend{flaky}->stats->{requests};
        ok(wait_until(sub { $node->get($path); $backend{flaky}->stats->{requests} > $before }), "$path: the first of two failures");
    }

    my $first_failures = time;

    # A probe that takes long: nobody else tries meanwhile.
    $backend{flaky}->set(status => 503, delay => 0.3);
    for my $path (map { "/$_/probed" } @both) {
        my $requests = $backend{flaky}->stats->{requests};
        my @clients;
        ok(wait_until(sub {
            my $client = $node->client;
            $client->send("GET $path HTTP/1.1\r\nHost: x\r\n\r\n");
            push @clients, $client;
            return wait_until(sub { $backend{flaky}->stats->{requests} > $requests }, 0.03);
        }), "$path: it is tried again");
        cmp_ok(time - $failed_at{$path}, '>=', $path =~ /stock/ ? 0 : 0.99, "$path: not before fail_timeout");
        cmp_ok(time - $failed_at{$path}, '<', 5, "$path: and soon after");
        push @clients, map { my $c = $node->client; $c->send("GET $path HTTP/1.1\r\nHost: x\r\n\r\n"); $c } 1 .. 4;
        is(join(' ', map { $_->response->{status} } @clients), join(' ', (200) x @clients), "$path: all are answered");
        is($backend{flaky}->stats->{requests}, $requests + 1, "$path: only one request tries it");
        is(tries_of_flaky($path), 0, "$path: it fails again, and rests again");
    }

    # Let 1s be over for the others as well, by any count.
    my $left = $first_failures + 2.1 - time;
    sleep $left if $left > 0;
    $backend{flaky}->clear;
    for my $path (map { "/$_/back" } @both) {
        ok(wait_until(sub { tries_of_flaky($path) }), "$path: one that is well again is tried again");
        is(tries_of_flaky($path), 2, "$path: and has its share from then on");
    }
    for my $path (map { "/$_/forgiven" } @both) {
        ok(wait_until(sub { tries_of_flaky($path) }), "$path: it answers well, more than fail_timeout after its failure");
        $backend{flaky}->set(status => 503);
        cmp_ok(tries_of_flaky($path), '>=', 2, "$path: which is forgiven: two more failures are needed");
        is(tries_of_flaky($path), 0, "$path: then it is left alone");
        $backend{flaky}->clear;
    }
};

subtest 'a registered server has the defaults: one failure, and long enough out' => sub {
    my $add = sub { api($node, $_[0] => { ns => 'registered', host => $_[1]->host, port => $_[1]->port }) };
    is($add->(add => $_)->{status}, 200, 'added: ' . $_->name) for @backend{qw(resets good)};
    $node->set_conf(http => $http . 'upstream registered { registry main; registry_balance round_robin; }',
        server => $node->{server} . 'location = /registered { proxy_pass http://registered; }');
    ok($node->reload, 'an upstream for them');
    is_deeply(observe('/registered', 6)->{tries}, { resets => 1, good => 6 }, 'one failure takes it out');
    is($add->(refresh => $backend{resets})->{status}, 200, 'a heartbeat');
    is_deeply(observe('/registered', 4)->{tries}, { good => 4 }, 'does not bring it back');
    is(api($node, reset => { ns => 'registered' })->{status}, 200, 'reset');
    is_deeply(observe('/registered', 4)->{tries}, { resets => 1, good => 4 }, 'clears the mark');
    is($add->(remove => $backend{resets})->{status}, 200, 'one that is removed');
    is($add->(add => $backend{resets})->{status}, 200, 'and added again');
    is_deeply(observe('/registered', 4)->{tries}, { resets => 1, good => 4 }, 'starts afresh');
    is($add->(remove => $backend{good})->{status}, 200, 'when the other goes');
    is_deeply(observe('/registered', 3)->{tries}, { resets => 3 }, 'it is the only one, and gets all requests');
};

ok(wait_until(sub { connections($node, $_) == 0 }), "$_: nothing is in flight at the end") for sort keys %upstreams;
$node->log_is_clean;
done_testing;
