package Test::Nginx::Socket;

# Declarative tests of nginx: each block under __DATA__ is a configuration, a request and
# what must come back. This is our own implementation, over Test::Base, of the part of
# CPAN's Test::Nginx::Socket that our tests use; files written for it run under either.
#
#     use Test::Nginx::Socket;
#     plan tests => repeat_each() * (blocks() * 2);
#     run_tests();
#     __DATA__
#     === TEST 1: says hello
#     --- config
#         location = /t { return 200 "hello\n"; }
#     --- request
#     GET /t
#     --- response_body
#     hello
#
# Stricter than the original: any [alert] or [emerg] line, crash, panic, sanitizer or
# valgrind report in the error log fails the block, until nginx is gone, unless the
# block's error_log section names the line.

use strict;
use warnings;

use Test::Base -base;

use List::Util ();
use RegistryTest::Process qw(time_scale);
use Scalar::Util qw(looks_like_number);
use Test::More ();
use Test::Nginx::Check qw(
    report is_str failures check_response check_logs check_shutdown_log is_named
    @ResponseBodyChecks
);
use Test::Nginx::Client qw(requests_of_block send_packets parse_response parse_time);
use Test::Nginx::TcpServer;
use Test::Nginx::Util qw(
    %Set start_nginx relaunch_nginx stop_nginx nginx_is_running start_status log_lines
    forget_log_position expand_env write_user_files alarming_lines nginx_said
), @Test::Nginx::Util::SETTINGS;
use Time::HiRes qw(sleep);

our @EXPORT = (
    qw(plan run_tests is_str add_response_body_check), @Test::Nginx::Util::SETTINGS,
);

sub add_response_body_check ($) { push @ResponseBodyChecks, $_[0] }

# The blocks that the running nginx has served.
my @served;

# Runs every block, in random order unless no_shuffle was called.
sub run_tests () {
    my @blocks = Test::Base::blocks();
    for my $block (@blocks) {
        $_->($block) for @{ $Set{preprocessors} };
    }
    @blocks = List::Util::shuffle(@blocks) unless $Set{no_shuffle};
    for my $i (0 .. $#blocks) {
        my $failures = failures();
        my $ok = eval { _run_block($blocks[$i]); 1 };
        report(0, $blocks[$i]->name, $@) unless $ok;
        # A block without config goes on with the nginx of the one before it.
        _finish_nginx() unless $i < $#blocks && !defined $blocks[ $i + 1 ]->config;
        Test::More::diag($blocks[$i]->name . ": nginx said:\n" . nginx_said())
            if failures() > $failures;
    }
    return;
}

# Why, and how many tests of, this block are to be skipped.
sub _skipped {
    my ($block) = @_;
    if (defined(my $spec = $block->skip_nginx)) {
        my ($count, $op, $version, $reason)
            = $spec =~ /^\s*(\d+)\s*:\s*([<>]=?)\s*(\d+\.\d+\.\d+)(?:\s*:\s*(.*?))?\s*$/
            or die "invalid skip_nginx: $spec\n";
        my $compared = _compare_version($version);
        my $hit = $op eq '<' ? $compared < 0 : $op eq '<=' ? $compared <= 0
            : $op eq '>' ? $compared > 0 : $compared >= 0;
        return ($count, $reason || "nginx version $op $version") if $hit;
    }
    if (defined(my $spec = $block->skip_eval)) {
        my ($count, $code) = $spec =~ /^\s*(\d+)\s*:\s*(.*)/s or die "invalid skip_eval: $spec\n";
        my $hit = eval $code;
        die "skip_eval: $@" if $@;
        return ($count, 'skip_eval') if $hit;
    }
    return;
}

sub _compare_version {
    my ($version) = @_;
    my $number = sprintf '%d.%03d%03d', split /\./, $version;
    my $own = RegistryTest::Process::binary_info(RegistryTest::Process::find_binary())->{number};
    return $own <=> $number;
}

sub _run_block {
    my ($block) = @_;
    my $name = $block->name;
    if (my ($count, $reason) = _skipped($block)) {
        for (1 .. $Set{repeat_each}) {
            SKIP: { Test::More::skip("$name - $reason", $count) }
        }
        return;
    }
    if (defined(my $spec = $block->todo)) {
        my ($count, $reason) = $spec =~ /^\s*(\d+)\s*:\s*(.*)/s or die "invalid todo: $spec\n";
        for (1 .. $Set{repeat_each}) {
            TODO: { Test::More::todo_skip("$name - $reason", $count) }
        }
        return;
    }

    my $config = expand_env(scalar $block->config, $block);
    return _run_must_die($block, $config) if defined $block->must_die;
    if (defined $config) {
        if (!start_nginx($block, $config)) {
            stop_nginx();
            die "nginx did not start\n";
        }
    }
    elsif (!nginx_is_running()) {
        die "no config section, and no nginx that runs\n";
    }
    push @served, $block;

    if (defined(my $code = $block->init)) {
        eval "package Test::Nginx::Util; no strict; no warnings; $code; 1" or die "init failed: $@";
    }
    forget_log_position();
    for my $round (0 .. $Set{repeat_each} - 1) {
        my $server = Test::Nginx::TcpServer->start($block);
        write_user_files($block) if $round;
        _run_requests($block, $round);
        $server->finish if $server;
    }
    return;
}

# nginx is expected to refuse its configuration. A number is the expected exit code.
sub _run_must_die {
    my ($block, $config) = @_;
    my $name = $block->name;
    die "no config section\n" unless defined $config;
    push @served, $block;
    forget_log_position();
    for my $round (0 .. $Set{repeat_each} - 1) {
        my $runs = $round ? relaunch_nginx() : start_nginx($block, $config, 1);
        my $status = $runs ? 0 : start_status();
        my $expected = $block->must_die;
        my $how = $runs ? 'it runs'
            : $status & 127 ? 'it died of signal ' . ($status & 127) : 'exit code ' . ($status >> 8);
        my $ok = !$runs && !($status & 127)
            && (looks_like_number($expected) ? $status >> 8 == $expected : $status >> 8 != 0);
        report($ok, "$name - nginx dies as expected", $how);
        stop_nginx() if $runs;
        check_logs($block, $round);
    }
    return;
}

sub _run_requests {
    my ($block, $round) = @_;
    my $name = $block->name;
    my @requests = requests_of_block($block, $Set{server_name});
    my $pipelined = $block->pipelined_requests;
    my $count = $pipelined ? @$pipelined : @requests;
    my $timeout = parse_time(scalar $block->timeout);
    $timeout = defined $timeout ? $timeout * time_scale() : $Set{timeout};
    my $shutdown = $block->shutdown;
    $shutdown = 1 if defined $shutdown && $shutdown !~ /\d/;
    my $address = $block->server_addr_for_client;
    $address = $Set{server_addr} unless defined $address;
    $address = "[$address]" if $address =~ /:/ && $address !~ /^\[|^unix:/;
    $address .= ":$Set{server_port_for_client}" unless $address =~ /^unix:/;

    my $i = 0;
    for my $request (@requests) {
        my ($bytes, $end) = send_packets($address, $request, timeout => $timeout, shutdown => $shutdown);
        if ($end eq 'timeout' && !defined $block->abort) {
            report(0, "ERROR: client socket timed out - $name");
        }
        # A request that nginx did not end by itself may not be in the log yet.
        sleep 0.05 * time_scale() if $end ne 'closed';
        my $is_head = $request->[0]{value} =~ /^\s*HEAD\s/;
        for (1 .. ($pipelined ? $count : 1)) {
            $bytes = _check_one_response($block, $bytes, $end, $is_head,
                i => $i, many => $count > 1 || $pipelined, round => $round)
                unless defined $block->ignore_response;
            sleep parse_time(scalar $block->wait) * time_scale() if $block->wait;
            check_logs($block, $round);
            $i++;
        }
    }
    return;
}

# Returns what follows the response.
sub _check_one_response {
    my ($block, $bytes, $end, $is_head, %at) = @_;
    my $name = $block->name;
    my $response = defined $block->http09
        ? { code => 200, headers => {}, raw_headers => '', content => $bytes, left => '' }
        : parse_response($bytes, $is_head);
    $response->{why} = $end ne 'closed' ? $end : length $bytes ? $response->{error} : 'no response';
    if ($response->{error} && $response->{code} ne '') {
        # As in the original, a broken chunked body fails the block, a short one is only
        # mentioned.
        if ($response->{chunked}) { report(0, "$name - invalid chunked data received", $response->{error}) }
        else                      { Test::More::diag("WARNING: $name - response body truncated") }
    }
    if (length $response->{left} && $at{i} == 0 && !$block->pipelined_requests) {
        Test::More::diag("WARNING: $name - unexpected extra bytes after the response: $response->{left}");
    }
    check_response($block, $response, %at);
    return $response->{left};
}

# Stops nginx and looks at all it said, to the last line.
sub _finish_nginx {
    my @blocks = splice @served or return;
    my $name = $blocks[-1]->name;
    my $runs = nginx_is_running();
    my $must_die = defined $blocks[-1]->must_die;
    my $status = start_status();
    my $signal = stop_nginx();
    if (!$runs && !$must_die) {
        # With master_process off nobody else would tell.
        report(0, "$name - nginx died during the test", 'wait status ', defined $status ? $status : '?')
            if !defined $status || $status != 0;
    }
    report(0, "$name - nginx had to be killed") if defined $signal && $signal eq 'KILL';
    check_shutdown_log($blocks[-1]) unless $must_die;

    my @lines = alarming_lines();
    if ($signal && $signal eq 'TERM') {
        Test::More::diag("WARNING: $name - nginx did not quit in time, its requests were cut off");
        @lines = grep { !/open socket #\d+ left in connection|\baborting$/ } @lines;
    }
    my @unnamed = grep { my $line = $_; !grep { is_named($_, $line) } @blocks } @lines;
    report(0, "$name - alarming lines in the error log", map { "$_\n" } @unnamed) if @unnamed;
    return;
}

1;
