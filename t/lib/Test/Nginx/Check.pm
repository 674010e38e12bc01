package Test::Nginx::Check;

# What a block says of its responses and logs, turned into tests. Each section makes as
# many tests as under the Test::Nginx on CPAN; what has no section (an alarm in the log,
# a client that timed out) makes a test only when it fails.

use strict;
use warnings;

use Exporter 'import';
use Test::More ();
use Test::Nginx::Client qw(parse_headers);
use Test::Nginx::Util qw(%Set log_lines wait_for_log access_log_lines);

our @EXPORT_OK = qw(
    report is_str failures check_response check_logs check_shutdown_log is_named
    @ResponseBodyChecks
);

our @ResponseBodyChecks;

my $failures = 0;

# How many tests have failed so far.
sub failures { return $failures }

sub report {
    my ($ok, $name, @why) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 10;    # no line of ours helps
    Test::More::ok($ok, $name);
    return 1 if $ok;
    $failures++;
    Test::More::diag(@why) if @why;
    return 0;
}

sub _show {
    my ($text) = @_;
    return 'undef' unless defined $text;
    $text =~ s/([\\"])/\\$1/g;
    $text =~ s/\n/\\n/g;
    $text =~ s/\r/\\r/g;
    $text =~ s/\t/\\t/g;
    $text =~ s/([\x00-\x1f\x7f-\xff])/sprintf '\\x%02x', ord $1/ge;
    return qq("$text");
}

# Long texts are shown from a little before the place where they differ.
sub _is {
    my ($got, $expected, $name) = @_;
    return report(1, $name) if defined $got && defined $expected && $got eq $expected;
    my $from = 0;
    if (defined $got && defined $expected) {
        my $same = $got ^ $expected;
        $from = $same =~ /^(\0*)/ ? length $1 : 0;
    }
    my $where = $from ? "they differ from character $from on\n" : '';
    my $start = $from > 100 && !$Set{no_long_string} ? $from - 50 : 0;
    my ($g, $e) = map {
        !defined $_                                        ? 'undef'
            : $Set{no_long_string} || length $_ <= 1000    ? _show($_)
            : ($start ? '...' : '') . _show(substr $_, $start < length $_ ? $start : length $_, 500) . '...';
    } $got, $expected;
    return report(0, $name, "     got: $g\nexpected: $e\n$where");
}

sub _like {
    my ($got, $pattern, $name, $unlike) = @_;
    $got = '' unless defined $got;
    my $matches = $got =~ $pattern;
    return report(1, $name) if $unlike ? !$matches : $matches;
    my $shown = length $got > 1000 ? _show(substr $got, 0, 1000) . '...' : _show($got);
    return report(0, $name, $shown, "\n", $unlike ? '    matches ' : '    does not match ', $pattern, "\n");
}

sub is_str (@) {
    my ($got, $expected, $name) = @_;
    return ref $expected eq 'Regexp' ? _like($got, $expected, $name) : _is($got, $expected, $name);
}

# The value for one of many requests: the section must then be an array.
sub _of_request {
    my ($block, $section, $i, $many) = @_;
    my $value = $block->$section;
    return $value->[$i] if ref $value eq 'ARRAY';
    return $value unless $many;
    report(0, $block->name . " - $section", 'for many requests the expected results must be an array');
    return;
}

sub _pattern { my ($text) = @_; return defined $text ? $text : '' }

sub _expand_ports {
    my ($text) = @_;
    return $text if !defined $text || ref $text;
    $text =~ s/\$ServerPort\b/$Set{server_port}/g;
    $text =~ s/\$ServerPortForClient\b/$Set{server_port_for_client}/g;
    return $text;
}

# Responses. i: which of the block's requests; many: it has several; round: which
# repetition of the block.
sub check_response {
    my ($block, $response, %at) = @_;
    _check_code($block, $response, $at{i}, $at{many});
    _check_raw_headers($block, $response, $at{i}, $at{many});
    _check_headers($block, $response, $at{i}, $at{many});
    _filter_body($block, $response, $at{i});
    _check_body($block, $response, \%at);
    return;
}

sub _check_code {
    my ($block, $response, $i, $many) = @_;
    my $name = $block->name . ' - status code ok';
    if (defined $block->error_code_like) {
        my $pattern = _pattern(_of_request($block, 'error_code_like', $i, $many));
        return _like($response->{code}, qr/$pattern/sm, $name);
    }
    my $expected = defined $block->error_code ? _of_request($block, 'error_code', $i, $many) : 200;
    my $why = $response->{why} ? "\n($response->{why})" : '';
    return report(1, $name) if defined $expected && $response->{code} eq $expected;
    return report(0, $name, "     got: '$response->{code}'\nexpected: '", _pattern($expected), "'$why\n",
        'body: ', _show(substr _pattern($response->{content}), 0, 500));
}

sub _check_raw_headers {
    my ($block, $response, $i, $many) = @_;
    for my $unlike (0, 1) {
        my $section = $unlike ? 'raw_response_headers_unlike' : 'raw_response_headers_like';
        next unless defined $block->$section;
        my $pattern = _pattern(_of_request($block, $section, $i, $many));
        _like($response->{raw_headers}, qr/$pattern/s, $block->name . " - $section", $unlike);
    }
    return;
}

sub _check_headers {
    my ($block, $response, $i, $many) = @_;
    my $like = !defined $block->response_headers;
    my $section = $like ? 'response_headers_like' : 'response_headers';
    return unless defined $block->$section;
    my $text = _of_request($block, $section, $i, $many);
    for my $pair (parse_headers(_pattern($text))) {
        my ($header, $value) = @$pair;
        my $name = $block->name . " - header $header ok";
        if (!defined $value) {
            _like($response->{raw_headers}, qr/^\s*\Q$header\E\s*:/ms,
                $block->name . " - header $header not present", 1);
            next;
        }
        my $got = $response->{headers}{ lc $header };
        $got = '' unless defined $got;
        if ($like) { _like($got, qr/^$value$/, $name) }
        else       { _is($got, _expand_ports($value), $name) }
    }
    return;
}

my %FILTER = (
    md5_hex  => sub { require Digest::MD5; Digest::MD5::md5_hex($_[0]) },
    sha1_hex => sub { require Digest::SHA; Digest::SHA::sha1_hex($_[0]) },
    uc       => sub { uc $_[0] },
    lc       => sub { lc $_[0] },
    ucfirst  => sub { ucfirst $_[0] },
    lcfirst  => sub { lcfirst $_[0] },
    length   => sub { length $_[0] },
);

sub _filter_body {
    my ($block, $response, $i) = @_;
    my $filters = $block->response_body_filters;
    return unless defined $filters && defined $response->{content};
    my @list = !ref $filters ? split ' ', $filters
        : ref $filters ne 'ARRAY' ? $filters
        : ref $filters->[0] eq 'ARRAY' ? @{ $filters->[$i] || [] } : @$filters;
    for my $filter (@list) {
        my $code = ref $filter ? $filter : $FILTER{$filter};
        if (!$code) { report(0, $block->name . " - unknown filter $filter"); next }
        $response->{content} = $code->($response->{content});
    }
    return;
}

sub _check_body {
    my ($block, $response, $at) = @_;
    my ($i, $many) = @$at{qw(i many)};
    my $content = $response->{content};
    my $name = $block->name . ' - response_body';
    my $which = " (repeated req $at->{round}, req $i)";
    if (defined $block->response_body) {
        is_str($content, _expand_ports(_of_request($block, 'response_body', $i, $many)), "$name$which");
    }
    elsif (defined $block->response_body_like || defined $block->response_body_unlike) {
        my $unlike = !defined $block->response_body_like;
        my $section = $unlike ? 'response_body_unlike' : 'response_body_like';
        my $pattern = _pattern(_expand_ports(_of_request($block, $section, $i, $many)));
        _like($content, qr/$pattern/s, $block->name . " - $section$which", $unlike);
    }
    $_->($block, $content, $i, $at->{round}, 0) for @ResponseBodyChecks;
    return;
}

# Logs

# A section of patterns: lines of text, one regex, or an array of both.
sub _patterns {
    my ($value) = @_;
    return unless defined $value;
    return @$value if ref $value eq 'ARRAY';
    return $value if ref $value;
    return grep { length } split /\n+/, $value;
}

# A string must be part of the line, a regex must match it.
sub _matches {
    my ($line, $pattern) = @_;
    return ref $pattern ? $line =~ $pattern : index($line, $pattern) >= 0;
}

# Whether one of the block's sections names this line.
sub is_named {
    my ($block, $line) = @_;
    for my $section (qw(error_log shutdown_error_log)) {
        for my $pattern (_patterns(scalar $block->$section)) {
            return 1 if defined $pattern && _matches($line, $pattern);
        }
    }
    my $grep = $block->grep_error_log;
    return scalar grep { defined $_ && _matches($line, $_) } ref $grep eq 'ARRAY' ? @$grep : $grep;
}

sub _check_present {
    my ($name, $log, $lines, @patterns) = @_;
    for my $pattern (@patterns) {
        next unless defined $pattern;
        report(scalar(grep { _matches($_, $pattern) } @$lines),
            qq($name - pattern "$pattern" matches a line in $log),
            @$lines ? ("the lines were:\n", @$lines > 50 ? @$lines[ -50 .. -1 ] : @$lines) : 'there were no lines');
    }
    return;
}

sub _check_absent {
    my ($name, $log, $lines, @patterns) = @_;
    for my $pattern (@patterns) {
        next unless defined $pattern;
        my @found = grep { _matches($_, $pattern) } @$lines;
        report(!@found, qq($name - pattern "$pattern" does not match a line in $log), @found);
    }
    return;
}

# What grep_error_log takes from the lines: from each the first match, as a line.
sub _grepped {
    my ($pattern, @lines) = @_;
    my $text = '';
    for my $line (@lines) {
        if (ref $pattern) { $text .= "$&\n" if $line =~ $pattern && $& !~ /\n/ }
        else              { $text .= "$pattern\n" if index($line, $pattern) >= 0 }
    }
    return $text;
}

# The sections about the logs, for the lines written since the last look. round: which
# repetition of the block.
sub check_logs {
    my ($block, $round) = @_;
    my $name = $block->name;
    my @wanted = _patterns(scalar $block->error_log);
    my ($grep, $out) = map { ref $_ eq 'ARRAY' ? $_->[$round] : $_ }
        scalar $block->grep_error_log, scalar $block->grep_error_log_out;
    if (defined $block->grep_error_log xor defined $block->grep_error_log_out) {
        report(0, "$name - grep_error_log and grep_error_log_out go together");
        return;
    }
    $out = '' if defined $grep && !defined $out;

    my @lines = @wanted || defined $grep ? wait_for_log(sub {
        my @now = @_;
        for my $pattern (@wanted) {
            return if defined $pattern && !grep { _matches($_, $pattern) } @now;
        }
        return 1 unless defined $grep;
        my $text = _grepped($grep, @now);
        return ref $out ? $text =~ $out : $text eq $out;
    }) : log_lines();

    is_str(_grepped($grep, @lines), $out, "$name - grep_error_log_out (req $round)") if defined $grep;
    _check_present("$name (req $round)", 'error.log', \@lines, @wanted);
    _check_absent("$name (req $round)", 'error.log', \@lines, _patterns(scalar $block->no_error_log));

    if (defined $block->access_log || defined $block->no_access_log) {
        my @access = access_log_lines();
        _check_present($name, 'access.log', \@access, _patterns(scalar $block->access_log));
        _check_absent($name, 'access.log', \@access, _patterns(scalar $block->no_access_log));
    }
    # As a hint only: nginx says [crit] of things that are no fault of its own.
    for my $line (grep { /\[crit\]/ } @lines) {
        Test::More::diag("WARNING: $name - $line") unless is_named($block, $line);
    }
    return;
}

# The same for what nginx wrote while it quit.
sub check_shutdown_log {
    my ($block) = @_;
    my @wanted = _patterns(scalar $block->shutdown_error_log);
    my @unwanted = _patterns(scalar $block->no_shutdown_error_log);
    return unless @wanted || @unwanted;
    my @lines = log_lines();
    _check_absent($block->name, 'error.log at shutdown', \@lines, @unwanted);
    _check_present($block->name, 'error.log at shutdown', \@lines, @wanted);
    return;
}

1;
