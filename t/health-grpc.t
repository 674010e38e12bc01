# type=grpc: the health protocol of gRPC, over HTTP/2 in the clear.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
use RegistryTest::Process qw(binary_info find_binary);
require "$FindBin::Bin/health.pl";
require "$FindBin::Bin/hostile.pl";

our ($node, $INTERVAL);
my @check = ('type=grpc', 'fails=1', 'passes=1');
$node = checked({
    main    => [@check],
    service => [ @check, 'service=shop.Cart' ],
    slow    => [ @check, 'timeout=' . ms(0.3) ],
});

subtest "gRPC's own server" => sub {
    my $grpc = RegistryTest->grpc or plan skip_all => 'this machine has no python3-grpcio';
    call('main', add => $grpc);
    my $health = after_checks('main', $grpc, 3, 'it serves');
    is($health->{fails}, 0, 'so it passes') or diag($health->{last_error}, $grpc->output);
    is((join ' ', map { $_ || '' } ($grpc->asked)[0 .. 1]), '- -', 'no service was named');
    my $from = $node->log_size;
    for my $case (
        [ NOT_SERVING       => 'serving status NOT_SERVING' ],
        [ SERVING           => undef ],
        [ UNKNOWN           => 'serving status UNKNOWN' ],
        [ SERVICE_UNKNOWN   => 'serving status SERVICE_UNKNOWN' ],
        [ 'status 14'       => 'grpc status 14' ],
        [ SERVING           => undef ],
        [ 'status 12'       => 'grpc status 12' ],
        [ 'status 16'       => 'grpc status 16' ],
    ) {
        my ($how, $reason) = @$case;
        $grpc->set($how);
        my $error;
        my $ok = wait_until(sub { $error = health('main', $grpc)->{last_error}; defined $reason ? ($error || '') eq $reason : !defined $error });
        ok($ok, "$how: " . ($reason || 'passes')) or diag($error);
        becomes('main', $grpc, defined $reason ? 'unhealthy' : 'up', defined $reason ? 'it is out' : 'it is in');
    }
    my @said = said('main', $grpc, $from);
    is(join('; ', @said[0 .. 3]), 'unhealthy: serving status NOT_SERVING, 1; healthy; unhealthy: serving status UNKNOWN, 1; healthy', 'the log has each turn')
        or diag(join "\n", @said);
    $grpc->set('SERVING');
    becomes('main', $grpc, 'up', 'it is in again');

    call('service', add => $grpc);
    becomes('service', $grpc, 'unhealthy', 'a service that it does not know');
    is(health('service', $grpc)->{last_error}, 'grpc status 5', 'NOT_FOUND');
    $grpc->set(SERVING => service => 'shop.Cart');
    becomes('service', $grpc, 'up', 'and when it does');
    $grpc->set(NOT_SERVING => service => 'shop.Cart');
    becomes('service', $grpc, 'unhealthy', 'a service that does not serve');
    is(state('main', $grpc), 'up', 'while the server does');
    ok((grep { $_ eq 'shop.Cart' } $grpc->asked), 'its name was sent');
    call('service', remove => $grpc);

    $grpc->stop;
    becomes('main', $grpc, 'unhealthy', 'the server ends');
    is(health('main', $grpc)->{last_error}, 'connect refused', 'nobody is there');
    $grpc->start;
    becomes('main', $grpc, 'up', 'it starts again');
    call('main', remove => $grpc);

    call('slow', add => $grpc);
    becomes('slow', $grpc, 'up', 'it serves');
    $grpc->set('hang');
    becomes('slow', $grpc, 'unhealthy', 'it does not answer');
    is(health('slow', $grpc)->{last_error}, 'timeout', 'in time');
    call('slow', remove => $grpc);
    unlike($grpc->output, qr/Traceback|[Ee]rror/, 'the server has nothing to complain of') or diag($grpc->output);
};

# Another HTTP/2: headers compressed, trailers in a block of their own.
subtest 'nginx as the server' => sub {
    plan skip_all => 'this nginx has no HTTP/2' unless binary_info(find_binary())->{text} =~ /http_v2_module/;
    my $new = binary_info(find_binary())->{number} >= 1.025001;
    my $listen = sub { my ($port) = @_; return $new ? "listen 127.0.0.1:%%PORT_$port%%; http2 on;" : "listen 127.0.0.1:%%PORT_$port%% http2;" };
    my $long = join '', map { "add_header X-Long-$_ " . 'abcdefghijklmnopqrstuvwxyz0123456789 ' =~ s/ //r x 20 . ';' } 1 .. 8;
    my $front = sub {
        my ($port, $file, $more) = @_;
        return "server { ${\ $listen->($port)} location = /grpc.health.v1.Health/Check {
            proxy_pass http://127.0.0.1:%%PORT_files%%/$file; proxy_method GET; proxy_pass_request_body off; proxy_set_header Content-Length '';
            $more } }\n";
    };
    my $h2 = RegistryTest->nginx(modules => [], workers => 1, http => "default_type application/grpc;
        server { listen 127.0.0.1:%%PORT_files%%; root %%DIR%%/html; }"
        . $front->(serving => 'serving', 'add_trailer grpc-status 0;')
        . $front->(not => 'not', 'add_trailer grpc-status 0; add_trailer grpc-message "all is well";')
        . $front->(empty => 'empty', 'add_trailer grpc-status 0;')
        . $front->(long => 'serving', "$long add_trailer grpc-status 0;")
        . $front->(status => 'empty', 'add_header grpc-status 7;')
        . $front->(bare => 'serving', '')
        . $front->(wrong => 'wrong', 'add_trailer grpc-status 0;')
        . $front->(compressed => 'compressed', 'add_trailer grpc-status 0;')
        . "server { ${\ $listen->('missing')} return 404; } server { ${\ $listen->('moved')} return 301 /elsewhere; } server { ${\ $listen->('error')} return 503; }");
    my $dir = $h2->dir . '/html';
    spew("$dir/serving", "\0\0\0\0\2\x08\1");
    spew("$dir/not", "\0\0\0\0\2\x08\2");
    spew("$dir/empty", '');
    spew("$dir/wrong", "\0\0\0\1\0not a message");
    spew("$dir/compressed", "\1\0\0\0\2\x08\1");
    my %expected = (
        serving => undef, long => undef,
        # The message says all.
        bare    => undef,
        not     => qr/^serving status NOT_SERVING$/,
        missing => qr/^status 404$/,
        moved   => qr/^status 301$/,
        error   => qr/^status 503$/,
        status  => qr/^grpc status 7$/,
        empty   => qr/^malformed response$/, wrong => qr/^malformed response$/, compressed => qr/^malformed response$/,
    );
    for my $name (sort keys %expected) {
        my $addr = $h2->address($name);
        call('main', add => $addr);
        my $health = after_checks('main', $addr, 2, $name);
        if ($expected{$name}) {
            like($health->{last_error} || '', $expected{$name}, "does not pass: " . ($health->{last_error} || ''));
            is(state('main', $addr), 'unhealthy', 'it is out');
        }
        else { is($health->{last_error}, undef, 'passes') }
        call('main', remove => $addr);
    }
    $h2->log_is_clean;
    $h2->quit;
};

subtest 'who does not speak HTTP/2' => sub {
    my $plain = RegistryTest->backend;
    call('main', add => $plain);
    becomes('main', $plain, 'unhealthy', 'a server of HTTP/1.1');
    like(health('main', $plain)->{last_error}, qr/^(?:malformed response|connection closed)$/, health('main', $plain)->{last_error});
    call('main', remove => $plain);
};

# Frames by hand: length, type, flags, stream.
sub frame { my ($type, $flags, $stream, $payload) = @_; return substr(pack('N', length $payload), 1) . pack('CCN', $type, $flags, $stream) . $payload }
my $SETTINGS = frame(4, 0, 0, '');
# :status 200 and nothing more, as the static table has it.
my $OK = frame(1, 4, 1, "\x88");
my %scripts = (
    silent      => [],
    slams       => ['close'],
    resets      => ['reset'],
    http1       => [ [ send => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" ] ],
    noise       => [ 'read', [ stream => join '', map { chr(($_ * 73 + 5) % 256) } 1 .. 4096 ] ],
    settings    => [ 'read', [ stream => $SETTINGS x 1000 ] ],
    pings       => [ 'read', [ send => $SETTINGS ], [ stream => frame(6, 0, 0, 'whoisit?') x 1000 ] ],
    acks        => [ 'read', [ send => $SETTINGS ], [ stream => frame(4, 1, 0, '') x 1000 ] ],
    updates     => [ 'read', [ send => $SETTINGS ], [ stream => frame(8, 0, 0, pack 'N', 1) x 1000 ] ],
    priorities  => [ 'read', [ send => $SETTINGS ], [ stream => frame(2, 0, 1, pack 'NC', 0, 1) x 1000 ] ],
    unknown     => [ 'read', [ send => $SETTINGS ], [ stream => frame(77, 0, 1, 'x' x 16000) ] ],
    headers     => [ 'read', [ send => $SETTINGS . frame(1, 0, 1, "\x88") ], [ stream => frame(9, 0, 1, "\x00\x01a\x01b" x 1000) ] ],
    empties     => [ 'read', [ send => $SETTINGS . frame(1, 0, 1, "\x88") ], [ stream => frame(9, 0, 1, '') x 1000 ] ],
    data        => [ 'read', [ send => $SETTINGS . $OK ], [ stream => frame(0, 0, 1, 'x' x 16000) ] ],
    nothing     => [ 'read', [ send => $SETTINGS . $OK ], [ stream => frame(0, 0, 1, '') x 1000 ] ],
    padding     => [ 'read', [ send => $SETTINGS . $OK . frame(0, 8, 1, "\xff\0\0\0\0\2\x08\1") ] ],
    huge        => [ 'read', [ send => $SETTINGS . "\xff\xff\xff\0\0\0\0\0\1" ], [ stream => 'x' x 65536 ] ],
    goes        => [ 'read', [ send => $SETTINGS . frame(7, 0, 0, pack 'NN', 0, 0) ], 'close' ],
    refuses     => [ 'read', [ send => $SETTINGS . frame(3, 0, 1, pack 'N', 7) ] ],
    index       => [ 'read', [ send => $SETTINGS . frame(1, 5, 1, "\xff\xff\xff\xff\xff\xff\xff\xff\x7f") ] ],
    zero        => [ 'read', [ send => $SETTINGS . frame(1, 5, 1, "\x80") ] ],
    table       => [ 'read', [ send => $SETTINGS . frame(1, 5, 1, "\x3f\xff\xff\xff\x7f\x88") ] ],
    # One entry of the dynamic table, named again and again: little to send, much to hold.
    bomb        => [ 'read', [ send => $SETTINGS . frame(1, 0, 1, "\x88\x40\x01a\x7f\xf1\x1d" . 'v' x 3952) ], [ stream => frame(9, 0, 1, "\xbe" x 16000) ] ],
    pushes      => [ 'read', [ send => $SETTINGS . frame(5, 4, 1, pack('N', 2) . "\x88") ], [ stream => frame(0, 0, 2, 'x' x 1000) ] ],
    other       => [ 'read', [ send => $SETTINGS . frame(1, 5, 99, "\x88") ] ],
    drips       => [ 'read', [ drip => $SETTINGS . $OK, 0.1 ] ],
);
subtest 'frames of all kinds' => sub {
    my @names = sort keys %scripts;
    my $probed = RegistryTest->probed(count => scalar @names);
    $probed->behave($scripts{ $names[$_] }, $_) for 0 .. $#names;
    call('slow', add => $probed->address($_)) for 0 .. $#names;
    for my $i (0 .. $#names) {
        my $health = after_checks('slow', $probed->address($i), 2, $names[$i]);
        is(state('slow', $probed->address($i)), 'unhealthy', 'does not pass: ' . ($health->{last_error} || 'it does!'));
        like($health->{last_error} || '', qr/^(?:timeout|connection closed|malformed response|response head too large|grpc status \d+)$/, 'for a reason');
    }
    slowest(1.5 * time_scale());
    my @workers = $node->workers;
    my ($before) = memory($node);
    my @open = map { descriptors($_) } @workers;
    my ($checks, $start) = ($probed->count, time);
    my ($most, $usual) = slowest(3 * time_scale());
    my ($after) = memory($node);
    my @now = map { descriptors($_) } @workers;
    note(sprintf '%d checks: %d kB before, %d kB after; descriptors %s, then %s; slowest %.1f ms', $probed->count - $checks, $before, $after, "@open", "@now", 1000 * $most);
    cmp_ok($after - $before, '<', 2048 * @workers, 'memory does not grow') if time_scale() == 1;
    cmp_ok($now[$_], '<=', $open[$_] + @names, 'nor do descriptors') for 0 .. $#workers;
    cmp_ok($most, '<', 0.4 * time_scale(), 'no request waited');
    cmp_ok($usual, '<', 0.1 * time_scale(), 'hardly any even for a moment');
    is($probed->most_at_once, 1, 'never two checks of one server at a time');
    call('slow', remove => $probed->address($_)) for 0 .. $#names;
    ok(wait_until(sub { !grep { !$_->{ended} } $probed->log($checks) }), 'all connections end');
};

$node->log_is_clean;
done_testing;
